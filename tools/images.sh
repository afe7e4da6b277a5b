#!/usr/bin/env bash
# Build the container images, each with its SBOM beside it. Usage: tools/images.sh [NAME...]
#
# NAME is a folder of images/; without one, all of them. Environment: DOCKER (docker, podman),
# IMAGE_PREFIX (registry and project that the names begin with), PYTHON_IMAGE and TRITON_IMAGE (the
# base images), IMAGE_OPTIONS (further options of the build). Result: PREFIX/NAME:VERSION in the
# local engine, build/images/NAME.cdx.json, and build/images/NAME.txt with the name and the id.
set -euo pipefail
cd "$(dirname "$0")/.."
docker=${DOCKER:-docker}
command -v "$docker" >/dev/null || {
    printf 'images: there is no %s on the PATH.\nnext: install it, or name another: DOCKER=podman\n' \
        "$docker" >&2
    exit 69
}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/sssflow/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ "$revision" = unknown ] || git diff --quiet HEAD -- src requirements images || revision+=-changed
read -r -a options <<<"${IMAGE_OPTIONS:-}"
for name in PYTHON_IMAGE TRITON_IMAGE; do
    [ -z "${!name:-}" ] || options+=(--build-arg "$name=${!name}")
done

folder=build/images
mkdir -p "$folder"
[ $# -gt 0 ] || set -- $(cd images && ls)
for name in "$@"; do
    image=${IMAGE_PREFIX:-sssflow}/$name:$version
    printf 'images: building %s\n' "$image"
    "$docker" build ${options[@]+"${options[@]}"} --file "images/$name/Dockerfile" --tag "$image" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" . >"$folder/$name.log" 2>&1 \
        || { tail -n 30 "$folder/$name.log" >&2; exit 70; }
    "$docker" run --rm --network none --entrypoint cat "$image" /usr/share/sssflow/sbom.cdx.json \
        >"$folder/$name.cdx.json"
    "$docker" image inspect --format "$image {{.Id}}" "$image" | tee "$folder/$name.txt"
done
