# Make .venv with a Python that is new enough. PYTHON=/path/to/python chooses one.
set -eu
least=$(sed -n 's/^min_python *= *//p' settings.ini)

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, sys.argv[1].split("."))))' "$least" 2>/dev/null; }

for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11} none; do
    new_enough "$python" && break
done
if [ "$python" = none ]; then
    echo "Memory-VLM needs Python $least or later and found none${PYTHON:+ at $PYTHON}. Say where it is: make PYTHON=/path/to/python" >&2
    exit 1
fi

echo "== Making an environment in .venv with $("$python" --version)"
"$python" -c 'import ensurepip, venv' 2>/dev/null || sh tools/debian.sh python3-venv
"$python" -m venv .venv || { rm -rf .venv; exit 1; }
