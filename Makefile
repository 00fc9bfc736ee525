# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Entry points. What they do is in resources/; docs/TESTING.md explains it.

.DEFAULT_GOAL := help
.PHONY: help packages build run shell test test-here test-arm64 bench fuzz check man deb book clean clean-cache

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  test-arm64 takes ONLY=[package/]executable GIC=v2|v3|v4 ARGS='test name'"

packages: ## install what is missing (Debian, as root); the other targets do it by themselves
	@resources/packages

build: ## target/aarch64-unknown-linux-gnu/release/doorbell, a static arm64 binary; and the tests' bare-metal guest
	@resources/arm64-build bin
	@resources/metal/build >/dev/null

run: build ## boot Debian's arm64 kernel in Doorbell, report which interrupts arrived
	@resources/demo report

shell: build ## the same guest with a shell on this terminal (Ctrl-a x leaves)
	@resources/demo shell

test: ## checks, tests on this machine, tests on arm64 hosts; ends with one line of numbers
	@resources/test

test-here: ## only the tests that run on this machine
	@resources/test here

test-arm64: ## only the tests that run on arm64 hosts
	@resources/test arm64

bench: build ## compare Doorbell with other VMMs in one run
	@tests/bench/run

fuzz: ## fuzz everything a guest or a file can write, FUZZ_SECONDS=60 each
	@resources/fuzz

check: ## format, lints, documentation, licences
	@resources/check

man: ## target/share: man pages and shell completions, from the command line's definition
	@cargo build -q --workspace --all-features --bin doorbell-generate
	@target/debug/doorbell-generate target/share

deb: build ## target/deb: a Debian package for arm64 with the program, its pages and a systemd unit
	@resources/deb

book: ## target/book: the documentation as a book (mdBook, fetched once)
	@resources/book

clean: ## remove what was built (not the cache of downloads and kernels)
	rm -rf target

clean-cache: ## remove downloads, kernels and initial RAM disks
	@resources/clean-cache
