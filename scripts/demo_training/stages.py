# SPDX-License-Identifier: Apache-2.0
"""The stages: the decoder on symbolic scenes, the vision tower towards the same symbols, then both together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from demo_training.data import TURNS, Scenes, Turns
from demo_training.loop import Losses, Schedule, Stage
from demo_training.model import HIDDEN, VISUAL, Decoder, Plan, Vision, layout_rows
from demo_training.symbols import Symbols
from fastmmoe.calibration.questions import KINDS

BALANCE = 0.01
"""Weight of the load-balancing loss."""
_EVALUATED = 32


@dataclass(frozen=True)
class StageConfig:
    """One stage.

    Attributes:
        scenes: pictures in a step.
        seed: of the initial weights.
        turns: questions about a picture.
        tokens: of a question, the answer included.
        visual: visual tokens of a picture that the decoder sees; fewer than all only on symbolic scenes.
        noise: standard deviation added to symbolic tokens.
        dense: weight of the vision tower's own targets while both train together.
        entropy: of the routing's entropy, so that experts specialise.
        compiles: the vision tower is compiled first, which pays after a hundred steps.
    """

    schedule: Schedule
    scenes: int
    seed: int
    turns: int = TURNS
    tokens: int = 16
    visual: int = VISUAL
    noise: float = 0.0
    dense: float = 0.0
    entropy: float = 0.0
    compiles: bool = True


CONFIGS = {
    "symbols": StageConfig(
        Schedule(steps=825, horizon=6000, learning_rate=1e-3, evaluate_every=250),
        scenes=32,
        seed=1,
        visual=56,
        noise=0.1,
    ),
    "vision": StageConfig(
        Schedule(steps=1232, horizon=3000, learning_rate=1e-3, evaluate_every=250), scenes=32, seed=2
    ),
    "joint": StageConfig(
        Schedule(steps=428, horizon=1800, learning_rate=5e-4, evaluate_every=200),
        scenes=16,
        seed=3,
        tokens=14,
        dense=0.1,
    ),
    "experts": StageConfig(
        Schedule(steps=1500, learning_rate=6e-4, evaluate_every=250),
        scenes=16,
        seed=4,
        tokens=14,
        dense=0.1,
        entropy=0.05,
    ),
}
"""What the shipped weights were trained with. The stages follow each other in this order."""


@dataclass(frozen=True)
class Data:
    """Scenes to train on, scenes to look at meanwhile, and the tokenizer's file."""

    train: Scenes
    validation: Scenes
    tokenizer: Path


class DecoderOnSymbols(nn.Module):
    """Decoder and symbols, from scratch."""

    def __init__(self, tokenizer: Path) -> None:
        super().__init__()
        self.decoder, self.symbols = Decoder(), Symbols()
        self.symbols.share_words(self.decoder, Tokenizer.from_file(str(tokenizer)))


class VisionLanguageModel(nn.Module):
    """What is shipped."""

    def __init__(self, vision: Vision, decoder: Decoder) -> None:
        super().__init__()
        self.vision, self.decoder = vision, decoder


@dataclass(frozen=True)
class Batch:
    """int64 tensors of some scenes, as in `Scenes`, and their pictures."""

    objects: torch.Tensor
    attributes: torch.Tensor
    ids: torch.Tensor
    targets: torch.Tensor
    kinds: torch.Tensor
    images: torch.Tensor

    @staticmethod
    def of(scenes: Scenes, index: npt.NDArray[Any] | slice, config: StageConfig) -> Batch:
        """Scenes `index`, drawn, with as many questions, and as many tokens of each, as the stage has."""
        assert scenes.images is not None
        part = (slice(None), slice(config.turns), slice(config.tokens))
        questions = (scenes.ids[part], scenes.targets[part], scenes.kinds[part[:2]])
        arrays = (scenes.objects, scenes.attributes, *questions)
        objects, attributes, *rest = (torch.from_numpy(array[index].astype("int64")) for array in arrays)
        ids, targets, kinds = rest
        return Batch(objects, attributes, ids, targets, kinds, torch.from_numpy(scenes.images[index]))


def _draw(scenes: Scenes, config: StageConfig, step: int) -> tuple[Batch, torch.Generator]:
    """The scenes of a step, and the generator for whatever else is random in it."""
    generator = torch.Generator().manual_seed(step)
    index = torch.randint(0, len(scenes), (config.scenes,), generator=generator).numpy()
    return Batch.of(scenes, index, config), generator


def _parts(scenes: Scenes, count: int, config: StageConfig) -> Iterator[Batch]:
    for start in range(0, min(count, len(scenes)), _EVALUATED):
        yield Batch.of(scenes, slice(start, start + _EVALUATED), config)


def answer_loss(decoder: Decoder, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers' tokens. hidden [B, turns * tokens, H], targets [B, turns, tokens], -1 = none."""
    at = (targets.flatten() >= 0).nonzero()[:, 0]
    logits = F.linear(hidden.flatten(0, 1)[at], decoder.lm_head.weight)
    return F.cross_entropy(logits.float(), targets.flatten()[at])


def accuracy(decoder: Decoder, prefix: torch.Tensor, batches: Iterator[tuple[Batch, torch.Tensor]]) -> dict[str, float]:
    """Share of questions whose every answer token is the most probable one: all, and by kind; all visual tokens.

    Args:
        batches: scenes with the tokens of one view [B, GRID^2, H].
    """
    rights, kinds = [], []
    for batch, view in batches:
        plan = Plan.of(len(prefix), VISUAL, *batch.ids.shape[1:])
        hidden = decoder(prefix, decoder.lay_out(view), torch.arange(VISUAL)[None], batch.ids, plan)
        right = (decoder.lm_head(hidden).argmax(-1).view(batch.targets.shape) == batch.targets) | (batch.targets < 0)
        rights.append(right.all(-1)[batch.kinds >= 0])
        kinds.append(batch.kinds[batch.kinds >= 0])
    right, kind = torch.cat(rights).float(), torch.cat(kinds)
    by_kind: dict[str, float] = {
        name: right[kind == i].mean().item() for i, name in enumerate(KINDS) if (kind == i).any()
    }
    return {"all": right.mean().item(), **by_kind}


def routing(decoder: Decoder) -> dict[str, float]:
    """How the experts of the last call were used.

    routing: entropy of a token's routing distribution over that of a uniform one, mean of tokens and layers.
    fullest, emptiest: load of an expert over the mean load, mean of layers.
    """
    probs = torch.stack([experts.probs.flatten(0, 1) for experts in decoder.experts])
    layers, _, E = probs.shape
    load = F.one_hot(probs.topk(decoder.experts[0].top_k, -1)[1].reshape(layers, -1), E).float().mean(1) * E
    return {
        "routing": decoder.entropy().item(),
        "fullest": load.max(1)[0].mean().item(),
        "emptiest": load.min(1)[0].mean().item(),
    }


def symbols_stage(directory: Path, data: Data, config: StageConfig) -> DecoderOnSymbols:
    """The decoder learns to look things up on tokens that are sums of what they show, a part of them at a time."""
    torch.manual_seed(config.seed)
    model = DecoderOnSymbols(data.tokenizer)
    prefix, rows = torch.tensor(Turns(data.tokenizer).prefix), layout_rows()
    plan = Plan.of(len(prefix), config.visual, config.turns, config.tokens)

    def loss(step: int) -> Losses:
        batch, generator = _draw(data.train, config, step)
        visual = model.decoder.lay_out(model.symbols(batch.objects, batch.attributes))
        visual = visual + config.noise * torch.randn(visual.shape, generator=generator)
        shows = F.pad(batch.objects >= 0, (0, 2))[:, rows]
        # Tokens that show an object are a little more likely to be among those that the decoder sees.
        chance = torch.rand(shows.shape, generator=generator) + 0.4 * shows
        places = chance.topk(config.visual, 1)[1].sort(1)[0]
        visual = visual.gather(1, places[..., None].expand(-1, -1, HIDDEN))
        hidden = model.decoder(prefix, visual, places, batch.ids, plan)
        answer = answer_loss(model.decoder, hidden, batch.targets)
        return {"answer": answer, "balance": BALANCE * model.decoder.balance()}

    def evaluate() -> dict[str, float]:
        parts = _parts(data.validation, 256, config)
        return accuracy(model.decoder, prefix, ((b, model.symbols(b.objects, b.attributes)) for b in parts))

    Stage(directory, "symbols", model, config.schedule, loss, evaluate).run()
    return model


class DenseTargets:
    """What the vision tower is to say of each token: the symbols' sum, frozen."""

    _ERROR, _CLASSES, _SHOWN = 4.0, 0.5, 3.0

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols.requires_grad_(False)
        self._place = (symbols.row[:, None] + symbols.column[None, :]).flatten(0, 1)

    def losses(self, view: torch.Tensor, batch: Batch) -> Losses:
        """Squared error to the sum, more where an object is; and cross-entropy of the attributes by their tables."""
        target, shows = self._symbols(batch.objects, batch.attributes), batch.objects >= 0
        error = (view.float() - target).square().mean(-1)
        weight = torch.where(shows, self._SHOWN, 1.0)
        true = self._true(batch)
        classes = [F.cross_entropy(x[shows], true[:, i]) for i, x in enumerate(self._logits(view))]
        return {
            "error": self._ERROR * (error * weight).sum() / weight.sum(),
            "classes": self._CLASSES * torch.stack(classes).mean(),
        }

    def correct(self, view: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[4, tokens with an object] bool: color and shape are right, x and y at most one bin off."""
        shows, true = batch.objects >= 0, self._true(batch)
        off = torch.stack([(x[shows].argmax(-1) - true[:, i]).abs() for i, x in enumerate(self._logits(view))])
        return off <= torch.tensor([0, 0, 1, 1])[:, None]

    def _true(self, batch: Batch) -> torch.Tensor:
        index = batch.objects.clamp(min=0)[..., None].expand(-1, -1, 4)
        return batch.attributes.gather(1, index)[batch.objects >= 0]

    def _logits(self, view: torch.Tensor) -> list[torch.Tensor]:
        x = view.float() - self._place
        return [x @ table.T * (8 / table.square().sum(-1).mean()) for table in self._symbols.attributes]


def vision_stage(directory: Path, data: Data, config: StageConfig, symbols: Symbols) -> Vision:
    """The vision tower and the projector learn to emit the symbols of what each token shows."""
    torch.manual_seed(config.seed)
    vision, dense = Vision(), DenseTargets(symbols)
    run_vision = torch.compile(vision, dynamic=False) if config.compiles else vision

    def loss(step: int) -> Losses:
        batch, _ = _draw(data.train, config, step)
        return dense.losses(run_vision(batch.images), batch)

    def evaluate() -> dict[str, float]:
        found = [dense.correct(vision(b.images), b) for b in _parts(data.validation, 512, config)]
        shares = torch.cat(found, dim=1).float().mean(1).tolist()
        return dict(zip(("color", "shape", "x", "y"), shares, strict=True))

    Stage(directory, "vision", vision, config.schedule, loss, evaluate).run()
    return vision


def joint_stage(
    directory: Path, name: str, data: Data, config: StageConfig, model: VisionLanguageModel, symbols: Symbols
) -> None:
    """Everything together on pictures, with every visual token."""
    torch.manual_seed(config.seed)
    vision, decoder, dense = model.vision, model.decoder, DenseTargets(symbols)
    prefix, places = torch.tensor(Turns(data.tokenizer).prefix), torch.arange(VISUAL)[None]
    plan = Plan.of(len(prefix), VISUAL, config.turns, config.tokens)
    run_vision = torch.compile(vision, dynamic=False) if config.compiles else vision

    def loss(step: int) -> Losses:
        batch, _ = _draw(data.train, config, step)
        view = run_vision(batch.images)
        hidden = decoder(prefix, decoder.lay_out(view), places, batch.ids, plan)
        losses = {
            "answer": answer_loss(decoder, hidden, batch.targets),
            "balance": BALANCE * decoder.balance(),
            "entropy": config.entropy * decoder.entropy(),
        }
        return losses | {name: config.dense * value for name, value in dense.losses(view, batch).items()}

    def evaluate() -> dict[str, float]:
        parts = _parts(data.validation, 256, config)
        return accuracy(decoder, prefix, ((b, vision(b.images)) for b in parts)) | routing(decoder)

    Stage(directory, name, model, config.schedule, loss, evaluate).run()


def shortened(config: StageConfig, steps: int, scenes: int) -> StageConfig:
    """The stage with few steps, few scenes and few questions about each, for a trial."""
    schedule = replace(
        config.schedule,
        steps=steps,
        horizon=0,
        warmup=5,
        log_every=5,
        evaluate_every=steps,
        learning_rate=2 * config.schedule.learning_rate,
    )
    return replace(config, schedule=schedule, scenes=scenes, turns=3, tokens=14, compiles=False)
