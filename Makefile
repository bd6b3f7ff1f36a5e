export CARGO_TARGET_DIR ?= $(HOME)/.cache/homeostat/target

.PHONY: help check test demo
help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

check: ## format and lints, warnings as errors
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings

test: ## all tests
	cargo test --workspace
