#!/usr/bin/env bash
# Puts together what CMakeLists.txt needs, without root:
#   FOLDER/include  headers of ONNX Runtime and nlohmann-json, from Debian packages that apt verifies
#   FOLDER/lib      libonnxruntime.so, the one in the `onnxruntime` wheel of the given Python
# A newer library serves the older API of the headers. Needs apt and dpkg-deb (Debian, Ubuntu).
# Exit code 3 where the packages cannot be had here, 1 for everything else that is missing.
set -euo pipefail

usage="usage: get_onnxruntime.sh FOLDER [PYTHON]   (PYTHON: one with onnxruntime installed; python3)"
folder=${1:?$usage}
python=${2:-python3}
suite=${DEBIAN_SUITE:-trixie} # the first Debian with libonnxruntime-dev
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

fail() {
  echo "get_onnxruntime.sh: $2" >&2
  exit "$1"
}
by_hand="unpack a release of ONNX Runtime and nlohmann-json into $folder by hand"
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail 3 "there is no $tool here; $by_hand"
done
[ -r "$keyring" ] || fail 3 "$keyring is missing; install debian-archive-keyring, or set DEBIAN_KEYRING"

library=$("$python" - <<'PYTHON'
import importlib.util, pathlib
spec = importlib.util.find_spec("onnxruntime")
folder = pathlib.Path(spec.origin).resolve().parent / "capi" if spec else None
found = sorted(folder.glob("libonnxruntime.so.*")) if folder else []
print(found[0] if found else "")
PYTHON
)
[ -n "$library" ] || fail 1 "$python has no onnxruntime with a libonnxruntime.so; pip install onnxruntime"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{lists/partial,cache/archives/partial,packages,root}
echo "deb [signed-by=$keyring] $mirror $suite main" >"$scratch/sources.list"
: >"$scratch/status"
apt=(apt-get --quiet --quiet
  -o "Dir::Etc::sourcelist=$scratch/sources.list" -o "Dir::Etc::sourceparts=-"
  -o "Dir::State=$scratch" -o "Dir::State::lists=$scratch/lists" -o "Dir::State::status=$scratch/status"
  -o "Dir::Cache=$scratch/cache" -o "APT::Sandbox::User=" -o "Acquire::Languages=none"
  -o "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false"
  -o "APT::Update::Post-Invoke-Success=" -o "Acquire::Retries=2"
  -o "Acquire::http::Timeout=20" -o "Acquire::https::Timeout=20")
# apt checks the signature of the lists and the sha256 of the packages in them.
"${apt[@]}" update --error-on=any || fail 3 "$mirror has no lists of $suite that apt takes; $by_hand"
(cd "$scratch/packages" && "${apt[@]}" download libonnxruntime-dev nlohmann-json3-dev) ||
  fail 3 "$mirror does not give the packages of $suite; $by_hand"
for package in "$scratch"/packages/*.deb; do
  dpkg-deb --extract "$package" "$scratch/root"
done

mkdir -p "$folder/include" "$folder/lib"
cp -r "$scratch"/root/usr/include/. "$folder/include/"
ln -sf "$library" "$folder/lib/$(basename "$library")"
ln -sf "$library" "$folder/lib/libonnxruntime.so"
ln -sf "$library" "$folder/lib/libonnxruntime.so.1" # the name that programs ask for
echo "$folder: $(basename "$library"); packages: $(cd "$scratch/packages" && echo *.deb)"
