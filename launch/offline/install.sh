# Sourced, in the project's root, on a machine without a package index; see collect.py:
#   . PATH/small/install.sh [FOLDER with dali-0/part-0, dali-1/part-1 … or the parts themselves]
# Wheels go into a folder of their own, which PYTHONPATH then names: what is there stays as it is.
_small=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
_site=${TMPDIR:-/tmp}/facestream-site
_pip() { python3 -m pip install -q --no-index --no-deps --no-cache-dir --upgrade --target "$_site" "$@"; }
[ -d "$_site/omegaconf" ] || _pip "$_small"/*.whl || return 1
if [ -n "${1:-}" ] && [ ! -d "$_site/nvidia/dali" ]; then
  _wheels=$(mktemp -d)
  for _n in 0 1 2 3 4 5 6 7 8 9; do find "$1" -name "part-$_n" -exec cat {} +; done >"$_wheels/dali.tar"
  if [ "$(sha256sum <"$_wheels/dali.tar" | cut -d' ' -f1)" != "$(cat "$_small/dali.sha256")" ]; then
    echo "a part of DALI is missing or damaged; found are:" && find "$1" -name 'part-[0-9]' -exec ls -l {} +
    rm -r "$_wheels"
    return 1
  fi
  tar -xf "$_wheels/dali.tar" -C "$_wheels" && _pip "$_wheels"/*.whl || return 1
  rm -r "$_wheels"
fi
export PYTHONPATH="$_site${PYTHONPATH:+:$PYTHONPATH}"
for _lib in "$_site"/nvidia/*/lib "$_site"/nvidia/nvimgcodec "$_site"/nvidia/nvimgcodec/extensions; do
  [ -d "$_lib" ] && export LD_LIBRARY_PATH="$_lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
done
true
