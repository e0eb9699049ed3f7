# SPDX-License-Identifier: Apache-2.0
"""Write what depends on the operators' contracts: the tables in docs/operators.md and headers and tables in C++.

    python scripts/make_contract.py [--check] [--docs FILE] [--plugins FOLDER]

Of the plugins these files are written: OPERATOR/contract.h, contract/tables.h and contract/tables.cpp; of the document
only what stands between the markers `<!-- contract NAME -->` and `<!-- end of contract NAME -->`. With --check nothing
is written, and the exit code is 1 where a file is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from markers import MissingMarkers, replace_part, table, write_or_check

from fastmmoe.exporter.ops import DOMAIN, OPS, Attribute, OpSpec, Tensor
from fastmmoe.exporter.ops.contract import Constant, Dimension, Size

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENT = REPOSITORY / "docs" / "operators.md"
PLUGINS = REPOSITORY / "plugins"
NOTICE = (
    "// SPDX-License-Identifier: Apache-2.0\n// Written by scripts/make_contract.py from exporter/ops. Do not edit."
)
ELEMENT_TYPES = ("float", "float16", "bfloat16", "int8", "int32")


def tensor_row(tensor: Tensor) -> tuple[str, ...]:
    """Name, shape, type and meaning of an input or output."""
    meaning = tensor.doc
    for words, condition in (("Only with", tensor.only_if), ("Not with", tensor.unless)):
        if condition is not None:
            attribute, values = condition
            meaning += f" {words} `{attribute}` = {' or '.join(map(str, values))}."
    if tensor.tiled:
        meaning += f" As tiles: [{', '.join(tensor.tiled)}]."
    if tensor.alias is not None:
        meaning += f" May have the address of `{tensor.alias}`."
    return f"`{tensor.name}`", f"[{', '.join(tensor.shape)}]", ", ".join(tensor.types), meaning


def legal_values(attribute: Attribute) -> str:
    """The values an attribute may have, in words."""
    if attribute.limits is not None:
        return f"{attribute.limits[0]} to {attribute.limits[1]}"
    return ", ".join(f"`{choice}`" for choice in attribute.choices) or "any"


def contract(spec: OpSpec) -> str:
    """The contract of one operator in Markdown."""
    variables = "; ".join(f"{name} is one of {', '.join(types)}" for name, types in spec.type_variables.items())
    columns = ("name", "shape", "type", "meaning")
    attributes = ((f"`{a.name}`", a.kind, legal_values(a), a.doc) for a in spec.attributes)
    sizes = ((s.letter, f"{s.least} to {s.greatest}", s.doc) for s in spec.sizes)
    parts = [
        spec.doc,
        f"Domain `{DOMAIN}`, version {spec.version}. Types: {variables}.",
        "Inputs, in order:",
        table(columns, map(tensor_row, spec.inputs)),
        "Outputs:",
        table(columns, map(tensor_row, spec.outputs)),
        "Attributes, all required:",
        table(("name", "kind", "legal values", "meaning"), attributes),
        "Sizes of the dimensions:",
        table(("dimension", "legal sizes", "meaning"), sizes),
    ]
    return "\n\n".join(parts)


def update_document(text: str) -> str:
    """The document with the present contracts. Raises MissingMarkers where one has no place."""
    for spec in OPS:
        text = replace_part(text, f"contract {spec.name}", contract(spec))
    return text


def type_name(name: str) -> str:
    """scoring_func -> ScoringFunc."""
    return "".join(part.capitalize() for part in name.split("_"))


def constant(name: str) -> str:
    """routing_probs -> kRoutingProbs."""
    return f"k{type_name(name)}"


def strings(spec: OpSpec) -> list[Attribute]:
    """The attributes whose legal values are an enumeration in C++."""
    return [attribute for attribute in spec.attributes if attribute.kind == "string"]


def enumeration(attribute: Attribute) -> str:
    """The legal values of a string attribute."""
    values = ", ".join(constant(str(choice)) for choice in attribute.choices)
    return f"enum class {type_name(attribute.name)} {{ {values} }};"


def reader(attribute: Attribute) -> str:
    """The C++ function that gives a node's value of a string attribute."""
    kind = type_name(attribute.name)
    value = f"static_cast<{kind}>(node.integer({constant(attribute.name)}))"
    return f"inline {kind} {attribute.name}_of(const NodeAttributes& node) {{ return {value}; }}"


def places(name: str, items: Iterable[Tensor | Attribute]) -> str:
    """Places of inputs, outputs or attributes in the tables."""
    return f"enum {name} : size_t {{ {', '.join(constant(item.name) for item in items)} }};"


def greatest_values(spec: OpSpec) -> str:
    """C++ constants, by which kernels prove that nothing they compute of sizes overflows."""
    values = {size.letter: size.greatest for size in spec.sizes}
    values |= {constant(a.name)[1:]: a.limits[1] for a in spec.attributes if a.limits is not None}
    return f"constexpr int64_t {', '.join(f'kMost{name} = {value}' for name, value in values.items())};"


def definition(number: Constant) -> str:
    """A constant of the method in C++."""
    suffix = "f" if number.kind == "float" else ""
    return f"constexpr {number.kind} {constant(number.name)} = {number.value!r}{suffix};  // {number.doc}"


def operator_header(spec: OpSpec) -> str:
    """The C++ header of one operator, for its kernels: the values of its attributes, limits, numbers."""
    sections = (
        ("The legal values of the attributes.", list(map(enumeration, strings(spec)))),
        ("The greatest legal sizes and numbers.", [greatest_values(spec)]),
        ("Numbers of the method.", list(map(definition, spec.constants))),
    )
    parts = [
        f"{NOTICE}\n#pragma once\n\n#include <cstdint>\n\n// clang-format off\nnamespace fastmmoe::{spec.folder} {{",
        *("\n".join([f"/// {title}", *lines]) for title, lines in sections if lines),
        f"}}  // namespace fastmmoe::{spec.folder}\n// clang-format on\n",
    ]
    return "\n\n".join(parts)


def header() -> str:
    """The C++ header of the tables: the places in them, and access to them."""
    includes = "".join(f'#include "{path}/contract.h"\n' for path in sorted(["contract", *(o.folder for o in OPS)]))
    parts = [f"{NOTICE}\n#pragma once\n\n{includes}\n// clang-format off\nnamespace fastmmoe {{\n"]
    for spec in OPS:
        parts += [
            f"namespace {spec.folder} {{",
            places("Input", spec.inputs),
            places("Output", spec.outputs),
            places("Attribute", spec.attributes),
            *map(reader, strings(spec)),
            "const OpContract& contract();",
            f"}}  // namespace {spec.folder}\n",
        ]
    parts.append("}  // namespace fastmmoe\n// clang-format on\n")
    return "\n".join(parts)


def braces(items: Iterable[str]) -> str:
    """A C++ initialiser list."""
    return f"{{{', '.join(items)}}}"


def quoted(text: object) -> str:
    """A C++ string literal."""
    return f'"{text}"'


def cpp_dimension(text: str) -> str:
    """A Dimension of contract.h."""
    dimension = Dimension.parse(text)
    terms = (f"{{{factor}, '{letter}'}}" for factor, letter in dimension.terms)
    divisor = f"'{dimension.divisor}'" if dimension.divisor else "0"
    return braces([quoted(text), str(dimension.number), braces(terms), divisor])


def cpp_types(spec: OpSpec, tensor: Tensor) -> str:
    types = spec.type_variables.get(tensor.types[0], tensor.types)
    assert set(types) <= set(ELEMENT_TYPES), types
    return braces(f"ElementType::{constant(t)}" for t in types)


def cpp_tensor(spec: OpSpec, tensor: Tensor) -> str:
    """A TensorContract of contract.h."""
    variable = f"'{tensor.types[0]}'" if tensor.types[0] in spec.type_variables else "0"
    alias = str([t.name for t in spec.inputs].index(tensor.alias)) if tensor.alias else "kNoAlias"
    shape, tiled = (braces(map(cpp_dimension, shape)) for shape in (tensor.shape, tensor.tiled))
    condition = cpp_condition(spec, tensor)
    return braces([quoted(tensor.name), shape, cpp_types(spec, tensor), variable, *condition, alias, tiled])


def cpp_condition(spec: OpSpec, tensor: Tensor) -> list[str]:
    """Attribute, values and whether they exclude the tensor, of a TensorContract."""
    condition = tensor.only_if or tensor.unless
    if condition is None:
        return ["kAlways", "{}", "false"]
    attribute = spec.attribute(condition[0])
    values = (str(attribute.choices.index(v) if attribute.kind == "string" else v) for v in condition[1])
    return [str(spec.attributes.index(attribute)), braces(values), str(tensor.unless is not None).lower()]


def cpp_attribute(attribute: Attribute) -> str:
    """An AttributeContract of contract.h."""
    is_text = attribute.kind == "string"
    texts = braces(quoted(choice) for choice in attribute.choices) if is_text else "{}"
    numbers = "{}" if is_text else braces(str(choice) for choice in attribute.choices)
    limits = attribute.limits or (0, 0)
    has_limits = str(attribute.limits is not None).lower()
    kind = f"AttributeKind::{constant(attribute.kind)}"
    return braces([quoted(attribute.name), kind, texts, numbers, has_limits, *map(str, limits)])


def cpp_size(size: Size) -> str:
    """A SizeContract of contract.h."""
    return braces([f"'{size.letter}'", str(size.least), str(size.greatest)])


def source() -> str:
    """The C++ source with the tables."""
    parts = [f'{NOTICE}\n#include "contract/tables.h"\n\n// clang-format off\nnamespace fastmmoe {{\n']
    for spec in OPS:
        parts += [
            f"const OpContract& {spec.folder}::contract() {{",
            f'  static const OpContract contract{{"{spec.name}", {spec.version},',
            *(f"    {text}" for text in block(cpp_tensor(spec, t) for t in spec.inputs)),
            *(f"    {text}" for text in block(cpp_tensor(spec, t) for t in spec.outputs)),
            *(f"    {text}" for text in block(map(cpp_attribute, spec.attributes))),
            *(f"    {text}" for text in block(map(cpp_size, spec.sizes), end="}};")),
            "  return contract;\n}\n",
        ]
    functions = ", ".join(f"&{spec.folder}::contract()" for spec in OPS)
    parts += [f"std::vector<const OpContract*> all_contracts() {{ return {{{functions}}}; }}\n"]
    parts.append("}  // namespace fastmmoe\n// clang-format on\n")
    return "\n".join(parts)


def block(items: Iterable[str], end: str = "},") -> list[str]:
    """An initialiser list, an item a line."""
    lines = [f" {item}," for item in items]
    lines[0] = "{" + lines[0][1:]
    lines[-1] = lines[-1][:-1] + end
    return lines


def cpp_files() -> dict[str, str]:
    """The C++ files by their place in the folder of the plugins."""
    headers = {f"{spec.folder}/contract.h": operator_header(spec) for spec in OPS}
    return headers | {"contract/tables.h": header(), "contract/tables.cpp": source()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what depends on the operators' contracts.")
    parser.add_argument("--check", action="store_true", help="only say whether the files are up to date")
    parser.add_argument("--docs", type=Path, default=DOCUMENT, metavar="FILE")
    parser.add_argument("--plugins", type=Path, default=PLUGINS, metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        document = update_document(arguments.docs.read_text(encoding="utf-8"))
    except MissingMarkers as error:
        sys.exit(f"{arguments.docs}: {error}")
    files = {arguments.docs: document} | {arguments.plugins / path: text for path, text in cpp_files().items()}
    write_or_check(files, check=arguments.check)


if __name__ == "__main__":
    main()
