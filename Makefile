# What a person may want is listed by `make help`. Everything installed for the project alone goes into .tools.

export PATH := $(CURDIR)/.tools/bin:$(PATH)
# The queries are checked against .sqlx at build time; a DATABASE_URL is for the program, not for the compiler.
export SQLX_OFFLINE := true
TARGET := $(or $(CARGO_TARGET_DIR),target)
SAMPLE_PROFILE := dev
WITH_SERVICES := $(TARGET)/debug/with-services

.DEFAULT_GOAL := help
.PHONY: help up hello test demo storm walk bench check fmt sqlx snapshots tools sample-app with-services clean-tools

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

up: ## Install what is missing, build, and run Sluice until Ctrl-C
	@scripts/install build engine $(if $(NATS_URL),,nats) $(if $(DATABASE_URL),,postgres)
	cargo build --locked --release -p sluice
	@exec env NATS_SERVER="$${NATS_SERVER:-$(CURDIR)/.tools/venv/bin/nats-server}" scripts/with-engine $(TARGET)/release/sluice up

hello: sample-app ## Load two versions of a sample image into the engine, as hello:v1 and hello:v2
	@cargo build --locked --quiet -p testkit --bin hello
	@scripts/with-engine $(TARGET)/debug/hello

test: tools with-services sample-app ## Run every test against real services of its own; nothing stays behind
	cargo nextest run --locked --workspace --no-run
	scripts/with-engine $(WITH_SERVICES) -- cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc --quiet

demo: SAMPLE_PROFILE := release
demo: sample-app ## Deploy under load and count the failed requests (writes target/report/demo.json)
	@scripts/install build nats postgres dockerd registry
	cargo build --locked --release -p sluice
	cargo build --locked --release -p testkit --features sample-app --bin demo
	@scripts/with-engine $(TARGET)/release/demo $(TARGET)/release/sluice

bench: SAMPLE_PROFILE := release
bench: sample-app ## Measure beside the peers, all or MEASURES=".." in ROUNDS=5 (writes target/report/bench.json)
	@scripts/install build nats postgres dockerd registry peers
	cargo build --locked --release -p sluice
	cargo build --locked --release -p bench
	@exec env ROUNDS=$(or $(ROUNDS),5) scripts/with-engine $(TARGET)/release/bench $(TARGET)/release/sluice $(MEASURES)

storm: SAMPLE_PROFILE := release
storm: sample-app ## Kill, hang and cut off everything under load (KILLS=50 SEED=..; writes target/report/storm.json)
	@scripts/install build nats postgres storm
	cargo build --locked --release -p sluice -p storm
	@$(if $(filter 0,$(shell id -u)),,sudo --preserve-env=KILLS,SEED,FAULTS,NATS_SERVER )$(TARGET)/release/storm $(TARGET)/release/sluice

walk: tools sample-app ## Kill each part at every step of every deployment (TARGETS=deployer,all; writes target/report/walk.json)
	WALK=together WALK_TARGETS=$(TARGETS) cargo nextest run --locked --profile walk -p sluice --test walk

check: with-services ## Formatting, lints, query snapshots, dependencies
	@scripts/install build postgres checkers
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	$(WITH_SERVICES) postgres -- scripts/sqlx --check
	cargo machete
	cargo deny --locked --all-features check --hide-inclusion-graph licenses bans sources

fmt: ## Format the code
	cargo fmt --all

sqlx: with-services ## Write .sqlx anew after a query or a migration changed
	@scripts/install build postgres checkers
	$(WITH_SERVICES) postgres -- scripts/sqlx

snapshots: tools with-services sample-app ## Run the tests and accept every changed snapshot (then read the diff)
	INSTA_UPDATE=always scripts/with-engine $(WITH_SERVICES) -- cargo nextest run --locked --workspace

tools: ## Install what the tests need
	@scripts/install build nats postgres dockerd registry proxies fuse provider storm nextest

with-services:
	@scripts/install build
	cargo build --locked --quiet -p testkit --features sample-app --bin with-services

# Static, for it runs in an image of nothing else. The testkit is built with the same features everywhere, so that its
# dependencies are compiled once.
sample-app:
	@scripts/install build
	cargo rustc --locked --quiet --profile $(SAMPLE_PROFILE) -p testkit --features sample-app --bin sample-app -- \
		-C target-feature=+crt-static -C strip=symbols
	@install -D $(TARGET)/$(SAMPLE_PROFILE:dev=debug)/sample-app target/sample-app/sample-app

clean-tools: ## Remove what was installed for the project alone
	rm -rf .tools shared/testkit/oidc/node_modules
