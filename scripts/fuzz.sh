#!/usr/bin/env bash
# Fuzzes every target, or those named, for a minute each, one on each core:
# scripts/fuzz.sh [TARGET…]
#
# FLANNELD_FUZZ_SECONDS=3600 scripts/fuzz.sh is the long form. Inputs that reach new code are kept
# in fuzz/corpus, those that break a target in fuzz/artifacts, what libFuzzer says in
# fuzz/target/logs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

export SECONDS_EACH=${FLANNELD_FUZZ_SECONDS:-60}
[[ $SECONDS_EACH =~ ^[1-9][0-9]*$ ]] ||
    die "FLANNELD_FUZZ_SECONDS=$SECONDS_EACH is no number of seconds: set 1 or more"

install_build_tools
# libFuzzer is C++.
install_missing c++:g++
find_cargo
cd "$ROOT"
install_cargo_fuzz

if [[ $# -eq 0 ]]; then
    mapfile -t targets < <(cargo fuzz list)
else
    targets=("$@")
fi
step "Building the fuzz targets"
# The flags of the sanitizers are unstable, the toolchain is stable.
RUSTC_BOOTSTRAP=1 cargo fuzz build </dev/null
BINARIES=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release
export BINARIES

# fuzz TARGET: ends with one line of what was done, or with what libFuzzer said last.
fuzz() {
    local target=$1 log=fuzz/target/logs/$1.log
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target" fuzz/target/logs
    # Two copies of one constant are no error here: as `cargo fuzz run` sets it.
    if ASAN_OPTIONS=detect_odr_violation=0 "$BINARIES/$target" \
        -max_total_time="$SECONDS_EACH" -timeout=60 "-artifact_prefix=fuzz/artifacts/$target/" \
        "fuzz/corpus/$target" "fuzz/seeds/$target" >"$log" 2>&1; then
        sed -n "s/^#\([0-9]*\)\tDONE  */fuzzed $target: \1 runs, /p" "$log"
    else
        tail -n 40 "$log"
        printf 'FAILED fuzz target %s: all of it is in %s\n' "$target" "$log"
        return 1
    fi
}
export -f fuzz

step "${#targets[@]} fuzz targets, $SECONDS_EACH seconds each"
# Goes on when a target fails, and fails at the end.
# The inner bash expands it.
# shellcheck disable=SC2016
printf '%s\0' "${targets[@]}" |
    xargs -0 -n 1 -P "$(nproc)" bash -c 'fuzz "$1"' _ ||
    die "a fuzz target failed: see above"
