#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Read by the other scripts fetch_*.sh: the Python whose pip fetches, and how they fail. In `remedy` a script says what
# its user can do instead.
remedy=
# For pip, which the Python of a system may lack.
python=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}

fail() {
  echo "$(basename "$0"): $1${remedy:+; $remedy}" >&2
  exit 1
}
