# What to do here; `make` alone prints this list.
#
#   make demo         a fleet of three on this machine, with sample pictures; Ctrl-C stops it
#   make test         all tests
#   make simulate     a fleet under a simulated network and clock: SEEDS=n runs, or SEED=s again; NODES= STEPS=
#   make simulate-nightly  the same with 10,000 seeds; make simulate-races: a million small races of purges
#   make simulate-planted  plants known bugs, one at a time, and tells which seed finds each
#   make simulate-fleet    a thousand nodes through churn and a rolling restart, with a chart
#   make simulate-hot      one key with half of all requests, NODES=200
#   make history      reads and purges on real nodes for MINUTES, and the check of their history
#   make check        formatting, lints, documentation; warnings are errors
#   make bench        the figures of benches/README.md
#   make instructions compares instruction counts with the recorded ones
#   make compare      beside nginx, HAProxy, Varnish, Traffic Server and Go groupcache; CASES= ROUNDS= SECONDS= NAME=
#   make fleet-figures  what is promised of a fleet, on five real nodes; CASES= ROUNDS= RATE= REQUESTS= CLIENTS=
#   make fuzz         every fuzz target for SECONDS=60; TARGETS= chooses some
#   make conformance  the public suite of HTTP caching tests; writes tests/conformance/README.md
#   make release      the program as it is deployed: target/release/groupcache-proxy
#
# Every target first looks for the tools that it needs, one by one. As root it installs the missing ones (Debian);
# otherwise it names them in one line.

CARGO ?= cargo

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

# The development build: it is ready in half the time of a release build and `make test` uses it again. A demo shows
# what happens, not how fast.
demo: build-tools
	$(CARGO) build --locked
	target/debug/groupcache-proxy demo

test: test-tools
	$(CARGO) test --locked

# The whole fleet in one process, one seed one run; see tests/simulate/README.md.
simulate: build-tools
	$(CARGO) test --locked $(SIMULATE_PROFILE) --test simulate -- \
		$(foreach name,SEEDS NODES STEPS SEED,$(call option,$(name)))

simulate-nightly: SIMULATE_PROFILE = --profile simulate
simulate-nightly: SEEDS ?= 10000
simulate-nightly: simulate

# A thousand nodes through churn and a rolling restart; the chart goes to benches/results/.
simulate-fleet: build-tools
	mkdir -p benches/results
	$(CARGO) test --locked --profile simulate --test simulate -- --fleet $(or $(NODES),1000)

# One key with half of all requests: who does how much of the work.
simulate-hot: build-tools
	$(CARGO) test --locked --profile simulate --test simulate -- --hot $(or $(NODES),200)

# Reads, changes and purges on real processes, and the check of what was seen.
history: test-tools
	HISTORY_MINUTES=$(or $(MINUTES),10) $(CARGO) test --locked --test it -- history --nocapture

# Small interleavings of purges with fills and hot copies, without time; a thousand for each seed.
simulate-races: build-tools
	$(CARGO) test --locked --profile simulate --test simulate -- --races $(or $(COUNT),1000000) $(call option,SEED)

# In a copy of the tree, for which everything is built once more; see tests/simulate/README.md.
simulate-planted: build-tools
	tests/simulate/planted/run

check: check-tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib

bench: bench-tools
	$(CARGO) bench --locked

# Fails when a count of instructions grew by more than a tenth over benches/instructions.toml.
instructions: instructions-tools
	$(CARGO) bench --locked --bench instructions

# Variables that are given become options of the script, which installs the other servers itself.
compare: compare-tools release
	python3 benches/compare $(foreach name,CASES ROUNDS SECONDS MEMORY_MIB OBJECTS CONTESTANTS NAME,$(call option,$(name)))
option = $(if $($(1)),--$(shell echo $(1) | tr 'A-Z_' 'a-z-') $($(1)))

# Writes benches/results/fleet.md when all cases were run.
fleet-figures: compare-tools release
	python3 benches/fleet $(foreach name,CASES ROUNDS RATE REQUESTS CLIENTS,$(call option,$(name)))

# What a target finds stays in target/fuzz/corpus, what breaks one in target/fuzz/artifacts. No sanitizer: this crate has no
# unsafe code, and without one no nightly compiler is needed. The versions are those of the product.
fuzz: fuzz-tools
	cp Cargo.lock tests/fuzz/Cargo.lock
	$(CARGO) fuzz build $(FUZZ)
	@for target in $(TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target target/fuzz/artifacts/$$target; \
		$(CARGO) fuzz run $(FUZZ) $$target target/fuzz/corpus/$$target tests/fuzz/corpus/$$target -- \
			-max_total_time=$(or $(SECONDS),60) -max_len=8192 -artifact_prefix=target/fuzz/artifacts/$$target/ || exit 1; \
	done
FUZZ = --fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none
fuzz: TARGETS ?= $(basename $(notdir $(wildcard tests/fuzz/targets/*.rs)))

conformance: conformance-tools
	$(CARGO) build --locked
	node tests/conformance/run.mjs

release: build-tools
	$(CARGO) build --locked --release

# What each target needs, for itself: `make test-tools` as root prepares a machine.
build-tools check-tools test-tools bench-tools instructions-tools compare-tools fuzz-tools conformance-tools:
	@.ci/tools $(@:-tools=)

.PHONY: help demo test simulate simulate-nightly simulate-races simulate-planted simulate-fleet simulate-hot history check bench instructions compare fleet-figures fuzz conformance release \
	build-tools check-tools test-tools bench-tools instructions-tools compare-tools fuzz-tools conformance-tools
