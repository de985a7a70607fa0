# One word each. `make setup` does what every other word needs and is done once; after that it costs a second.
VENV := .venv
BIN := $(VENV)/bin
OBJECT := build/clustermesh.bpf.o
ARGS ?=

.PHONY: help setup demo test test-units test-nodes check style dist soak bench bench-middle bench-controlplane bench-datapath proto clean

help:
	@echo "make demo    two clusters, one service: watch the mesh work (ARGS=--json for one JSON object)"
	@echo "             ARGS=--kubernetes: on two real Kubernetes clusters, made for it (two minutes after a set-up of 12)"
	@echo "make test    everything that is checked: style, types, unit tests, real etcd, Kubernetes and kernel, the lab"
	@echo "make check   style, types and unit tests, with few examples of each property (under a minute on two cores, needs no root)"
	@echo "make soak    property tests and faults with new seeds for SOAK_SECONDS (300), each printed (ARGS: which tests, or faults;"
	@echo "             kills: an agent killed SOAK_KILLS (200) times under load, ten minutes)"
	@echo "make bench   timings, as ratios where there is a peer to compare with"
	@echo "make bench-middle  the figures of the agent and the mesh's core beside their aims (ARGS: their names)"
	@echo "make bench-controlplane  the figures of API server and mirror beside a real Kubernetes API (ARGS: their names)"
	@echo "make bench-datapath  connections through services beside kube-proxy's rules (ARGS: names of figures)"
	@echo "make dist    what is given away, into dist/: wheels, chart and image, the same bytes from the same files"
	@echo "make setup   install what is missing and build (the others do this by themselves)"
	@echo "make clean   remove what was built; the Debian packages stay"

setup:
	@tools/setup

demo: setup
	@case " $(ARGS) " in *" --kubernetes "*) tools/setup-kube;; esac
	@$(BIN)/clustermesh demo $(ARGS)

style: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: style
	@HYPOTHESIS_PROFILE=quick $(BIN)/pytest tests/unit -q -n auto -m "not long" $(ARGS)

# Tests of what is given away, of the programs, in namespaces of their own, and with an etcd or a Kubernetes API share nothing but the machine. Some work,
# some wait: six at a time keep two cores busy, each with a file, in this order; a Kubernetes API costs for as long as it is there, so they come last. Real
# nodes wait, too: unit tests work meanwhile. The lab's go one by one: they share addresses and devices, and most have requests that may not fail.
APART := tests/release tests/bpf tests/netns tests/etcd tests/kube
REST := tests --ignore=tests/unit --ignore=tests/bench $(patsubst %,--ignore=%,$(APART) tests/nodes)
test: style
	@tools/setup-kube
	@$(MAKE) -s -j2 --output-sync=target test-units test-nodes
	@$(BIN)/pytest $(APART) -n 6 --dist loadfile --no-loadscope-reorder $(ARGS)
	@$(BIN)/pytest $(REST) $(ARGS)

test-units:
	@$(BIN)/pytest tests/unit -q -n auto $(ARGS)

test-nodes:
	@$(BIN)/pytest tests/nodes $(ARGS)

dist: setup
	@tools/setup-kube helm
	@$(MAKE) -s -C bpf
	@$(BIN)/python -m tools.release $(ARGS)

soak: setup
	@tools/setup-kube
	@$(BIN)/python -m tests.soak $(ARGS)

bench: setup
	@$(BIN)/python -m tests.bench $(ARGS)

bench-middle: setup
	@$(BIN)/python -m tests.bench.middle $(ARGS)

bench-controlplane: setup
	@tools/setup-kube
	@PYTHONPATH=tests/beds $(BIN)/python -m tests.bench.controlplane $(ARGS)

bench-datapath: setup
	@tools/setup-kube
	@PYTHONPATH=tests/beds $(BIN)/python -m tests.bench.datapath $(ARGS)

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. clustermesh/store/rpc.proto clustermesh/wire/slice.proto

clean:
	@if [ -x $(BIN)/clustermesh ] && [ -d /run/clustermesh-lab ]; then $(BIN)/clustermesh lab down; fi
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
