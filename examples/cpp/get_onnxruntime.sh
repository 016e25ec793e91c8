#!/usr/bin/env bash
# Puts together what CMakeLists.txt needs of ONNX Runtime, without root:
#   FOLDER/include  its headers, from a Debian package that apt verifies
#   FOLDER/lib      libonnxruntime.so, the one in the `onnxruntime` wheel of the given Python
# A newer library serves the older API of the headers. Needs apt and dpkg-deb (Debian, Ubuntu).
# Exit code 3 where the package cannot be had here, 1 for everything else that is missing.
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
by_hand="unpack a release of ONNX Runtime into $folder by hand"
command -v apt-get dpkg-deb >/dev/null || fail 3 "there is no apt-get or dpkg-deb here; $by_hand"
[ -r "$keyring" ] || fail 3 "$keyring is missing; install debian-archive-keyring, or set DEBIAN_KEYRING"

library=$("$python" -c "import onnxruntime, glob, os
print(*glob.glob(os.path.dirname(onnxruntime.__file__) + '/capi/libonnxruntime.so.*')[:1])" || true)
[ -n "$library" ] || fail 1 "$python has no onnxruntime with a libonnxruntime.so; pip install onnxruntime"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{lists/partial,cache/archives/partial} "$folder"/{include,lib}
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
(cd "$scratch" && "${apt[@]}" download libonnxruntime-dev) ||
  fail 3 "$mirror does not give libonnxruntime-dev of $suite; $by_hand"
dpkg-deb --extract "$scratch"/*.deb "$scratch/root"
cp -r "$scratch"/root/usr/include/. "$folder/include/"
for name in "$(basename "$library")" libonnxruntime.so libonnxruntime.so.1; do # .1: what programs ask for
  ln -sf "$library" "$folder/lib/$name"
done
echo "$folder: $(basename "$library"), headers of $(cd "$scratch" && echo *.deb)"
