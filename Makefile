export CARGO_TARGET_DIR ?= $(HOME)/.cache/homeostat/target
RELEASE := $(CARGO_TARGET_DIR)/release
DURATION ?= 120
SEED ?= 1
RUNS ?= 1000
DATA ?= ../shared/data
PEERS ?= ../shared/bench/peers

.PHONY: help demo test test-kubernetes soak check bench bench-choice bench-detection bench-healing bench-peers build image

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 17

demo: build ## break a small shop of services and watch it heal: make demo DURATION=120 SEED=1
	$(RELEASE)/homeostat demo --duration $(DURATION) --seed $(SEED)

test: ## start a real Kafka, run all tests on it, stop it
	@.ci/test
test-kubernetes: ## the executor against a real Kubernetes control plane, built once
	@.ci/need rust cc make perl go && cargo test --workspace --test kubernetes --locked -- --include-ignored
soak: ## the tests that take long: a day without faults, a thousand kills each of executor and processors, ten thousand queries
	@.ci/test --release -- --ignored a_day a_thousand the_bench_of_healing

check: ## format and lints with warnings as errors, one version of arrow, fuzz targets that compile
	@.ci/need rust cc make perl
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo check --manifest-path src/telemetry/fuzz/Cargo.toml --target-dir target/fuzz
	@.ci/one-arrow
bench: ## ns per row by format, window and stage; records per second through a real Kafka, beside a raw consumer; append to anomaly at 100,000/s
	@.ci/need rust cc make perl java mvn
	cargo bench --workspace --bench decode --bench fold --bench rates --bench end_to_end --bench latency --locked
bench-detection: ## every detector on public labelled data: make bench-detection DATA=../shared/data
	cargo bench -p detector --bench detection --locked -- --data $(abspath $(DATA))
bench-choice: ## the learned choice of an action on public labelled incidents: make bench-choice DATA=../shared/data
	cargo bench -p remediation --bench choice --locked -- --data $(abspath $(DATA))
bench-healing: ## decisions in simulated services with known faults, beside a static rule and an oracle: make bench-healing SEED=1 RUNS=1000
	@cargo build --release -p rehearsal --locked
	@$(RELEASE)/homeostat-trial --seed $(SEED) --runs $(RUNS)
bench-peers: build ## ours beside Flink, Kafka Streams and others: make bench-peers PEERS=../shared/bench/peers QUICK=1
	@.ci/need java javac mvn python3 librdkafka simdjson
	@.ci/bench-peers $(PEERS) $(RELEASE)/homeostat $(if $(QUICK),--quick)

build: ## the programs: homeostat, homeostat-executor and the demonstration's shop
	@.ci/need rust cc make perl
	cargo build --release --workspace --bins --locked
	@echo "built in $(RELEASE)"

image: ## container image with both programs, for those who have Docker
	docker build --tag homeostat .
