#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_debian_packages.sh SUITE COMPONENT DIR PACKAGE...: unpacks packages of another Debian suite, for another
# machine as NAME:arm64, into the new folder DIR. They come through the system's own Debian line and private apt folders:
# no system source, list or package changes, no rights are needed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"

usage="usage: fetch_debian_packages.sh SUITE COMPONENT DIR PACKAGE..."
suite=${1:?$usage}
component=${2:?$usage}
target=${3:?$usage}
packages=("${@:4}")
[ ${#packages[@]} -gt 0 ] || { echo "$usage" >&2 && exit 1; }

for tool in apt-get dpkg-deb awk; do
  command -v "$tool" >/dev/null || fail "$tool is not installed, so ${packages[*]} cannot be taken from Debian"
done
[ -r /etc/os-release ] || fail "/etc/os-release is missing, so this is not known to be Debian"
id=$(. /etc/os-release && echo "${ID:-unknown}")
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
[ "$id" = debian ] || fail "this system is '$id', expected 'debian'"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# One stanza for $suite and $component from the first enabled deb822 stanza that has the system's suite and main.
from_deb822() {
  awk -v want="$codename" -v suite="$suite" -v component="$component" '
    function has(list, word,   n, i, parts) {
      n = split(list, parts, /[ \t\n]+/)
      for (i = 1; i <= n; i++) if (parts[i] == word) return 1
      return 0
    }
    function flush(   uri) {
      if (has(value["types"], "deb") && has(value["suites"], want) && has(value["components"], "main") &&
          tolower(value["enabled"]) !~ /^(no|false|0)$/ && !done) {
        split(value["uris"], uri, /[ \t\n]+/)
        print "Types: deb\nURIs: " (uri[1] == "" ? uri[2] : uri[1]) "\nSuites: " suite "\nComponents: " component
        if (value["signed-by"] != "") print "Signed-By: " value["signed-by"]
        done = 1
      }
      split("", value); name = ""
    }
    FNR == 1 || /^[ \t]*$/ { flush() }
    /^#/ || /^[ \t]*$/ { next }
    /^[ \t]/ { value[name] = value[name] "\n" $0; next }
    { name = tolower($0); sub(/:.*/, "", name); sub(/^[^:]*:[ \t]*/, ""); value[name] = $0 }
    END { flush() }' "$@"
}

# The same from one-line files: deb [options] URI SUITE COMPONENT...
from_one_line() {
  awk -v want="$codename" -v suite="$suite" -v component="$component" '
    /^[ \t]*deb[ \t]/ && !done {
      line = $0; key = ""
      if (match(line, /\[[^]]*\]/)) {
        options = substr(line, RSTART + 1, RLENGTH - 2)
        line = substr(line, 1, RSTART - 1) substr(line, RSTART + RLENGTH)
        n = split(options, option, /[ \t]+/)
        for (i = 1; i <= n; i++) if (sub(/^signed-by=/, "", option[i])) key = option[i]
      }
      n = split(line, word, /[ \t]+/)
      first = word[1] == "" ? 2 : 1
      if (word[first + 2] != want) next
      for (i = first + 3; i <= n; i++) if (word[i] == "main") done = 1
      if (!done) next
      print "Types: deb\nURIs: " word[first + 1] "\nSuites: " suite "\nComponents: " component
      if (key != "") print "Signed-By: " key
    }' "$@"
}

shopt -s nullglob
deb822=(/etc/apt/sources.list.d/*.sources)
one_line=(/etc/apt/sources.list.d/*.list)
[ -f /etc/apt/sources.list ] && one_line=(/etc/apt/sources.list "${one_line[@]}")
: >"$tmp/debian.sources"
[ ${#deb822[@]} -gt 0 ] && from_deb822 "${deb822[@]}" >"$tmp/debian.sources"
[ -s "$tmp/debian.sources" ] || [ ${#one_line[@]} -eq 0 ] || from_one_line "${one_line[@]}" >"$tmp/debian.sources"
[ -s "$tmp/debian.sources" ] || fail "no apt source of this system has suite '$codename' and component 'main'"

# The system's apt settings (a proxy, for example) stay, its hooks after an update do not run.
mkdir -p "$tmp/conf" "$tmp/lists/partial" "$tmp/cache/archives/partial" "$tmp/download"
for file in /etc/apt/apt.conf.d/*; do cp "$file" "$tmp/conf/"; done
architectures=$(printf '%s\n' "${packages[@]}" | sed -n 's/.*:\(.*\)/"\1";/p' | sort -u)
cat >"$tmp/conf/zz-private" <<CONF
#clear APT::Update;
APT::Architectures { "$(dpkg --print-architecture)"; $architectures };
Dir::Etc::SourceList "$tmp/debian.sources";
Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "-";
Dir::Etc::PreferencesParts "-";
Dir::State::Lists "$tmp/lists";
Dir::Cache "$tmp/cache";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
CONF
echo "Dir::Etc::Parts \"$tmp/conf\";" >"$tmp/apt.conf"
export APT_CONFIG=$tmp/apt.conf

first_error() { grep -E '^(E|W):' "$tmp/log" | head -n 1 || true; }
apt-get -qq update >"$tmp/log" 2>&1 || fail "apt-get update for $suite/$component failed: $(first_error)"
(cd "$tmp/download" && apt-get -qq download "${packages[@]}") >"$tmp/log" 2>&1 ||
  fail "apt-get download ${packages[*]} failed: $(first_error)"
mkdir -p "$target"
for file in "$tmp/download"/*.deb; do
  dpkg-deb -x "$file" "$target" || fail "${file##*/} from $suite cannot be unpacked into $target"
done
