#!/usr/bin/env bash
# Installs what `deno task dist` needs beside Rust, Go, Python and Node: for all targets of deploy/targets.ts.
set -euo pipefail

# cargo-zigbuild links for every processor and C library with the libraries that Zig brings.
pip3 install --quiet --user --break-system-packages cargo-zigbuild==0.24.1 ziglang==0.17.1
go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
rustup component add llvm-tools
rustup target add {x86_64,aarch64}-unknown-linux-{gnu,musl}

if [[ -n ${GITHUB_PATH:-} ]]; then
  printf '%s\n' "$HOME/.local/bin" "$(go env GOPATH)/bin" >> "$GITHUB_PATH"
fi
