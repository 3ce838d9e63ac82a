#!/usr/bin/env bash
# A release as one file: the program, its configurations, pages, licences, completions and man pages, with a checksum and a list
# of all that was built in (SBOM).
#
#   deploy/release.sh [folder]          (default: target/package)
#
# Writes numalign-VERSION-TARGET.tar.gz, its .sha256 and, where cargo-cyclonedx or cargo-auditable is installed, its SBOM
# (.cdx.json), or a program that holds its own. The program needs nothing but glibc: TLS, the demo model and the fonts are inside,
# and NVIDIA's libraries are looked for when it runs. Two builds of one commit on one machine give the same bytes.
# NUMALIGN_FEATURES=cuda builds for GPUs too. NUMALIGN_BINARY=FILE packs that program and builds nothing.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
out=${1:-target/package}
mkdir -p "$out"
out=$(cd "$out" && pwd)
target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=numalign-$version-$target
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH

binary=${NUMALIGN_BINARY:-}
if [ -z "$binary" ]; then
    build=(cargo)
    if cargo auditable --version >/dev/null 2>&1; then
        # The list of what was built in goes into the program itself: `cargo audit bin` reads it.
        build=(cargo auditable)
    fi
    "${build[@]}" build --release --locked --package numalign --features "${NUMALIGN_FEATURES:-}"
    binary=${CARGO_TARGET_DIR:-target}/release/numalign
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/$name
mkdir -p "$tree/bin" "$tree/share/man" "$tree/share/completions"
install -m 755 "$binary" "$tree/bin/numalign"
strip "$tree/bin/numalign" 2>/dev/null || echo "the program is not stripped: there is no strip (binutils)" >&2
cp README.md CONTRIBUTING.md LICENSE-APACHE LICENSE-MIT "$tree/"
cp -r config docs deploy examples "$tree/"
"$tree/bin/numalign" completions man --out "$tree/share/man"
for shell in bash zsh fish; do
    "$tree/bin/numalign" completions "$shell" >"$tree/share/completions/numalign.$shell"
done
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$work" -cf - "$name" |
    gzip -n -9 >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")

if cargo cyclonedx --version >/dev/null 2>&1; then
    cargo cyclonedx --quiet --manifest-path crates/cli/Cargo.toml --format json --override-filename "$name.cdx"
    mv "crates/cli/$name.cdx.json" "$out/"
    # It writes one beside the manifest of every member; only the program's is meant.
    find crates -name "$name.cdx.json" -delete
elif [ "${build[1]:-}" = auditable ]; then
    echo "the SBOM is inside the program (cargo-auditable)"
else
    echo "no SBOM: neither cargo-cyclonedx nor cargo-auditable is installed" >&2
fi

if command -v readelf >/dev/null 2>&1; then
    echo "needs: $(readelf -d "$binary" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | tr '\n' ' ')"
    echo "glibc: $(readelf -V "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -V | tail -n 1) or later"
fi
ls -l "$out/$name"*
cat "$out/$name.tar.gz.sha256"
