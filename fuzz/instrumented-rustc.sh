#!/bin/sh
# A rustc for RUSTC_WORKSPACE_WRAPPER: it instruments this workspace's libraries and fuzzing programs for libFuzzer, and
# leaves build scripts alone, which run without it. Dependencies stay as an ordinary build has them.
case " $* " in
*" --crate-name build_script_"*) exec "$@" ;;
*" --crate-type "* | *" --crate-name "*) ;;
*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
