# The commands of this repository. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help try demo demo-down cluster cluster-down test programs e2e figures verify fix tools bench sim sim-explain opsim opsim-explain mutants search fuzz torture volumes cover sbom rust powercut evidence

CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/synod
NEXTEST_VERSION := 0.9.151
DENY_VERSION := 0.20.2
FUZZ_VERSION := 0.13.2
TARPAULIN_VERSION := 0.37.5
NEXTEST := $(CACHE)/tools/cargo-nextest-$(NEXTEST_VERSION)/bin/cargo-nextest
DENY := $(CACHE)/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
FUZZ := $(CACHE)/tools/cargo-fuzz-$(FUZZ_VERSION)/bin/cargo-fuzz
TARPAULIN := $(CACHE)/tools/cargo-tarpaulin-$(TARPAULIN_VERSION)/bin/cargo-tarpaulin

export CARGO_TERM_PROGRESS_WHEN ?= auto
CLUSTER := cargo run --quiet --locked --package synod-cluster --

help: ## List the targets
	@echo 'make TARGET, where TARGET is one of'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) \
	  | while IFS=$$'\t' read -r target text; do printf '  %-14s %s\n' "$$target" "$$text"; done

try: rust ## Try Synod on this machine, without root or Kubernetes: a job, a killed leader, a verdict
	@cargo build --quiet --locked --package synod-sidecar
	@tests/try/run target/debug

demo: rust ## Show Synod at work on a real three-node Kubernetes; leaves it running
	@cargo run --quiet --locked --package synod-demo --

demo-down: rust ## Remove the demo's cluster and everything that belongs to it
	@$(CLUSTER) down --name demo

cluster: rust ## Bring up a local Kubernetes named dev, with Synod's images on every node
	@$(CLUSTER) up --name dev
	@$(CLUSTER) images --load dev

cluster-down: rust ## Remove the cluster that `make cluster` brought up
	@$(CLUSTER) down --name dev

# What tests build for themselves is built before: they are ended when they take too long, builds are not.
PLANTED := RUSTFLAGS='--cfg synod_planted' CARGO_TARGET_DIR=target/planted cargo build --quiet --locked

programs: rust
	@sidecar/tests/upgrade/previous > /dev/null
	@$(PLANTED) --package synod-sim --bin synod-sim --profile sim
	@$(PLANTED) --package synod-search --bin synod-search
	@cargo build --quiet --locked --workspace --example first_minute
	@for program in tracing/build http/schemathesis stock/go stock/node; do \
	  "sidecar/tests/$$program" > /dev/null; \
	done
	@folder="$$(mktemp -d)"; trap 'rm -rf "$$folder"' EXIT; \
	  sidecar/tests/stock/grpc-go "$$folder/go" > /dev/null; \
	  sidecar/tests/stock/grpc-java "$$folder/java" > /dev/null

# The operator's failure modes under load take minutes each: each commit has another third of them, `make e2e` has all.
MODES := package(synod-e2e) and (binary(day_two) or binary(failure_modes) or binary(certificates) or binary(cases))
THIRD = $(shell echo $$(( 0x$$(git rev-parse --short=7 HEAD 2> /dev/null || echo 0) % 3 + 1 )))

test: verify programs ## Everything: verify, unit, protocol, simulation, integration, end to end
	@$(NEXTEST) nextest run --workspace --all-targets --locked --no-run
	@trap '$(CLUSTER) down --quiet --name test' EXIT; \
	  $(CLUSTER) up --name test; \
	  $(CLUSTER) images --load test; \
	  failed=0; \
	  $(NEXTEST) nextest run --workspace --all-targets --locked --no-fail-fast -E 'not ($(MODES))' || failed=1; \
	  $(NEXTEST) nextest run --workspace --all-targets --locked --no-fail-fast -E '$(MODES)' --partition 'slice:$(THIRD)/3' \
	    || failed=1; \
	  exit "$$failed"

e2e: rust tools ## All end-to-end tests on a local Kubernetes; the table to target/e2e/report.json
	@$(NEXTEST) nextest run --workspace --locked -E 'package(synod-e2e)' --no-run
	@cargo run --quiet --locked --package synod-e2e --bin report -- --clear
	@trap '$(CLUSTER) down --quiet --name test' EXIT; \
	  $(CLUSTER) up --name test; \
	  $(CLUSTER) images --load test; \
	  failed=0; \
	  $(NEXTEST) nextest run --workspace --locked -E 'package(synod-e2e)' --no-fail-fast || failed=1; \
	  cargo run --quiet --locked --package synod-e2e --bin report; \
	  exit "$$failed"

figures: rust ## How fast the operator is on a local Kubernetes: make figures, or FIGURES_ARGS='--many 500'
	@trap '$(CLUSTER) down --quiet --name test' EXIT; \
	  $(CLUSTER) up --name test; \
	  $(CLUSTER) images --load test; \
	  cargo run --quiet --locked --package synod-e2e --bin figures -- $(FIGURES_ARGS)

verify: rust tools ## The read-only gate: format, clippy, bans, licences, sources, generated files
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- --deny warnings
	@$(DENY) --log-level warn check bans licenses sources
	@cargo run --quiet --locked --package synod-operator --bin crdgen -- --check

fix: rust ## Format the code and write the generated files anew
	@cargo fmt --all
	@cargo run --quiet --locked --package synod-operator --bin crdgen
	@SYNOD_WRITE=1 cargo test --quiet --locked --package synod-proto > /dev/null

# How long `make sim` and `make torture` run, and `make fuzz` each target: 90s, 10m, 1h.
FOR ?= 1m
SIM := cargo run --quiet --locked --profile sim --package synod-sim --bin synod-sim --

sim: rust ## Try to break the core on both cores: make sim FOR=10m
	@$(SIM) sweep --for $(FOR) --report target/sim/report.json $(SIM_ARGS)

sim-explain: rust ## Show how a seed breaks a promise: make sim-explain SEED=7
	@$(SIM) explain $(SEED)

OPSIM := cargo run --quiet --locked --profile sim --package synod-opsim --bin synod-opsim --

opsim: rust ## Try to break the operator: make opsim FOR=10m, or SEEDS=10000
	@$(OPSIM) sweep $(if $(SEEDS),--seeds $(SEEDS),--for $(FOR)) $(OPSIM_ARGS)

opsim-explain: rust ## Show how a seed breaks a rule of the operator: make opsim-explain SEED=7
	@$(OPSIM) explain $(SEED) $(OPSIM_ARGS)

mutants: rust ## Plant each bug of the list in the core, and see which test catches it
	@cargo run --quiet --locked --package synod-mutants -- $(MUTANTS_ARGS)

search: rust ## Visit every state of small clusters: make search SEARCH_ARGS='--help'
	@cargo run --quiet --locked --package synod-search -- --depth-first $(SEARCH_ARGS)

fuzz: rust $(FUZZ) ## Throw bytes at every decoder, FOR each: make fuzz FOR=10m
	@CARGO_FUZZ='$(FUZZ)' fuzz/run '$(FOR)' $(TARGETS)

TORTURE := cargo test --quiet --release --locked --package synod-sidecar --test torture -- --nocapture
# Volumes of each kind that `make volumes` wipes, rolls back and swaps; cuts of `make powercut`.
RUNS ?= 200

torture: rust ## Kill, pause, stall and fill real members under load: make torture FOR=20m
	@SYNOD_TORTURE='$(FOR)' $(TORTURE) nothing_acknowledged

volumes: rust ## Wipe, roll back and swap the volumes of real members: make volumes RUNS=200
	@SYNOD_VOLUMES='$(RUNS)' $(TORTURE) volumes

powercut: rust ## Cut the power of all real members at once under load: make powercut RUNS=200
	@SYNOD_POWERCUT='$(RUNS)' $(TORTURE) power_cut

evidence: rust ## sim, torture, powercut, volumes; the table of it to docs/reliability.md: FOR=30m RUNS=200
	@cargo run --quiet --locked --package synod-evidence -- --for $(FOR) --runs $(RUNS) $(EVIDENCE_ARGS)

cover: rust $(TARPAULIN) ## Which lines of sidecar/paxos the core's tests and some simulated seeds run
	@'$(TARPAULIN)' tarpaulin --packages synod-paxos synod-sim --tests --engine llvm --skip-clean --locked \
	  --target-dir target/cover --output-dir target/cover --out Lcov --include-files 'sidecar/paxos/src/*' \
	  --timeout 1800 -- --skip planted --skip nothing_gated_leaves --skip a_fixed_range --skip partial_connectivity

bench: rust ## Measure on this machine: make bench BENCH_ARGS='--help'
	@cargo run --quiet --release --locked --package synod-bench -- $(BENCH_ARGS)

sbom: rust ## Write what the sidecar and the operator are built from (CycloneDX) to target/sbom
	@cargo run --quiet --locked --package synod-supply --bin synod-sbom -- $(SBOM_ARGS)

tools: rust $(NEXTEST) $(DENY) ## Build the test runner and the dependency checker, once

# Built in the cache folder, named by version, and moved into place when whole.
$(NEXTEST) $(DENY) $(FUZZ) $(TARPAULIN): | rust
	@root='$(patsubst %/bin/,%,$(dir $@))'; name='$(notdir $@)'; \
	  version="$${root##*-}"; mkdir -p "$${root%/*}"; \
	  echo "Building $$name $$version (once)"; \
	  cargo install --quiet --locked --root "$$root.partial" --version "$$version" "$$name"; \
	  rm -rf "$$root"; mv "$$root.partial" "$$root"

# cargo cannot be built by cargo: what must be there before anything else.
rust:
	@command -v cargo > /dev/null || { \
	  echo 'Rust is missing. Get it at https://rustup.rs (as root: `sudo -E make` keeps your PATH).' >&2; \
	  exit 1; }
	@command -v cc > /dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    echo 'Installing gcc, which links Rust programs'; \
	    apt-get update -q > /dev/null; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends gcc libc6-dev > /dev/null; \
	  else echo 'A C compiler is missing: install gcc and libc6-dev, or your system'"'"'s like.' >&2; exit 1; fi; }
