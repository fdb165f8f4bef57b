# For a new machine: `make demo` shows that everything runs, `make test` tests it. Both install into .venv first.
# `make test-all` also runs the slow tests, `make lint` checks the style.
PYTHON ?= python3
PY := .venv/bin/python

# A machine without an NVIDIA card takes torch from PyTorch's CPU index if that can be reached: 200 MB instead of several GB.
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test test-all lint

demo: .venv/installed
	rm -rf demo
	$(PY) demo.py demo/images
	$(PY) synthesis.py --authentic demo/images --out demo/data --count 40 --authentic-count 20
	$(PY) train.py --data demo/data --out demo/run --backbone embedded --epochs 3 --learning-rate 3e-4
	$(PY) tuning.py --data demo/data --checkpoint demo/run/best.pt --out demo/run/tuned.json --trials 25
	$(PY) test.py --data demo/data --checkpoint demo/run/best.pt --clustering demo/run/tuned.json --out demo/run/test
	@echo "images: demo/data; curves: demo/run/index.html; search: demo/run/tuned.html; findings: demo/run/test/report/index.html"

test: .venv/installed-dev
	$(PY) -m pytest

# The slow ones too: tests that kill processes, and searches that take long.
test-all: .venv/installed-dev
	$(PY) -m pytest -m ""

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv || { echo "no virtual environments here; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@command -v nvidia-smi >/dev/null || ! curl -sfI --max-time 3 $(CPU_INDEX)/ >/dev/null 2>&1 \
		|| $(PY) -m pip install -q --index-url $(CPU_INDEX) "$$(grep -o '^torch==[0-9.]*' requirements.txt)"
	$(PY) -m pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(PY) -m pip install -q -r requirements-dev.txt
	touch $@
