# `make demo` and `make test` set up everything that they need; `make` alone says what there is.
PYTHON ?= python3
ARGS ?=
# each with a Spark of its own, which waits as often as it computes; 0 for none beside pytest itself
TEST_PROCESSES ?= 3

# `make test PART=long`: what the default suite leaves out, by what it needs
PART ?= default
PART_default :=
PART_long := -m 'long and not slow and not nightly and not connect and not kafka and not s3 and not browser and not cluster'
PART_nightly := -m 'nightly and not slow and not connect and not kafka and not s3 and not browser and not cluster'
# the tests of estimator and model once more
PART_connect := -m 'connect and not long and not nightly and not slow and not kafka and not s3'
PART_connect-long := -m 'connect and (long or nightly) and not slow and not kafka and not s3'
PART_kafka := -m 'kafka and not slow and not connect'
PART_kafka-connect := -m 'kafka and not slow and connect'
PART_s3 := -m 's3 and not connect'
PART_s3-connect := -m 's3 and not slow and connect'
PART_browser := -m 'browser'
# `make cluster` makes both
PART_cluster := -m 'cluster and not long'
PART_cluster-long := -m 'cluster and long'
# `make kills` makes the fifty
PART_slow := -m 'slow and not connect and not kafka and not s3' -k 'not fifty'

VENV := .venv
PY := $(VENV)/bin/python

# A SPARK_HOME of another Spark would win over the venv's own, and workers would start the PATH's
# python3; without bytecode each process compiles the package anew; ../shared/data is where the
# project's own machines keep ratings.
WITH_SPARK = unset SPARK_HOME PYTHONDONTWRITEBYTECODE; \
	JAVA_HOME="$$(sh scripts/ensure-java.sh)" || exit 1; export JAVA_HOME; \
	PYSPARK_PYTHON="$(CURDIR)/$(PY)"; export PYSPARK_PYTHON; \
	SPARK_LOCAL_IP="$${SPARK_LOCAL_IP-127.0.0.1}"; export SPARK_LOCAL_IP; \
	if [ -z "$${SPARKML_SGDALS_DATA+set}" ] && [ -d ../shared/data ]; then \
		SPARKML_SGDALS_DATA="$$(cd ../shared/data && pwd)"; export SPARKML_SGDALS_DATA; \
	fi;

.DEFAULT_GOAL := help
.PHONY: help setup demo kafka demo-kafka serve-demo test lint bench bench-large cluster kills image rehearse docs

help: ## Say what there is
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' \
		$(firstword $(MAKEFILE_LIST))

setup: $(VENV)/spark.jsa ## Make .venv with the package and all its tools, and find or install Java
	@sh scripts/ensure-java.sh > /dev/null

demo: $(VENV)/.installed ## Stream MovieLens into a model, against Spark's ALS: out/demo.png
	@$(WITH_SPARK) $(PY) examples/demo.py $(ARGS)

kafka: $(VENV)/.installed ## Run a Kafka broker and print its address, until Ctrl-C
	@$(WITH_SPARK) exec $(PY) scripts/kafka_broker.py $(ARGS)

demo-kafka: $(VENV)/.installed ## Stream MovieLens through a Kafka broker of its own: out/kafka.png
	@$(WITH_SPARK) exec $(PY) scripts/kafka_broker.py \
		$(PY) examples/kafka_stream.py --every 1 $(ARGS)

serve-demo: $(VENV)/.installed ## Serve films on a page that learns as you rate, until Ctrl-C
	@$(WITH_SPARK) exec $(PY) examples/serve_demo.py $(ARGS)

test: $(VENV)/spark.jsa ## Run the tests, or PART=long, ...; ARGS="-k stream -x" goes to pytest
	@$(if $(filter PART_$(PART),$(.VARIABLES)),,$(error there is no PART=$(PART): see Makefile))
	@# in the order of folders: files of many small tests, of tests/unit, come last and fill the end
	@$(WITH_SPARK) $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
		$(PART_$(PART)) $(ARGS)

lint: $(VENV)/.installed ## ruff, mypy, and nothing in the package that Spark Connect lacks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@grep -rnE --include='*.py' '_jvm|_jdf|\.rdd\b|sparkContext' sparkml_sgdals; \
	case $$? in \
		0) echo "These lines name what Spark Connect lacks: use DataFrames." >&2; exit 1 ;; \
		1) ;; \
		*) exit 1 ;; \
	esac

bench: $(VENV)/.installed ## Time what ends within ten minutes against Spark's own; docs/benchmarks.md
	@$(WITH_SPARK) for name in small_fit recommend grid streaming kernels; do \
		case $$name in \
			recommend) set -- --only transform recommendForUserSubset ;; \
			grid) set -- 2 ;; \
			streaming) set -- 3 ;; \
			*) set -- ;; \
		esac; \
		echo "benchmarks/$$name.py"; \
		$(PY) benchmarks/$$name.py "$$@" || exit 1; \
	done
	$(PY) benchmarks/page.py

bench-large: $(VENV)/.installed ## Time what takes most of an hour: 26 and 78 million ratings, all users
	@$(WITH_SPARK) for name in large_fit recommend model_size scale; do \
		echo "benchmarks/$$name.py"; \
		$(PY) benchmarks/$$name.py || exit 1; \
	done
	@# peers are measured where they are installed
	@$(WITH_SPARK) if $(PY) -c 'import cmfrec, implicit' 2> /dev/null; then \
		$(PY) benchmarks/large_peers.py || exit 1; \
	fi
	$(PY) benchmarks/page.py

cluster: $(VENV)/.installed ## Run everything on a Spark cluster of this machine, and kill parts of it
	@$(WITH_SPARK) $(PY) -m pytest -m cluster $(ARGS)

kills: $(VENV)/.installed ## Kill streams 50 times and at every named point, files and Kafka: out/kills-*.json
	@$(WITH_SPARK) harness="$(PY) tests/kills/trials.py"; \
	run() { of=$$1; shift; "$$@" --json out/kills-$$of.json $(ARGS) || exit 1; }; \
	for way in classic connect; do \
		run $$way-files $$harness --way $$way --source files; \
		run $$way-kafka $(PY) scripts/kafka_broker.py $$harness --way $$way --source kafka; \
	done; \
	run classic-part-in-memory $$harness --resident 100; \
	run classic-events $$harness --model events; \
	run fits $(PY) tests/kills/fits.py

rehearse: $(VENV)/.installed ## Build a release, test its sdist, install it from an index of this machine
	@$(WITH_SPARK) $(PY) scripts/rehearse_release.py $(ARGS)

image: $(VENV)/.installed ## Follow deploy/Dockerfile without an engine, as root, and start what it makes: out/image
	@$(WITH_SPARK) $(PY) scripts/kafka_broker.py $(PY) scripts/build_image.py --root out/image $(ARGS)

docs: $(VENV)/.installed ## Check the links of all pages, and build the site: site/
	$(PY) scripts/check_links.py README.md CONTRIBUTING.md SECURITY.md benchmarks/README.md docs
	$(PY) -m mkdocs build --strict

# half of what a session costs at its start; where no archive can be written tests take longer
$(VENV)/spark.jsa: $(VENV)/.installed
	@echo "Archiving what Spark's JVM loads at its start ..."
	@$(WITH_SPARK) $(PY) scripts/archive_spark.py $@ || touch $@

$(VENV)/.installed: pyproject.toml
	@sh scripts/ensure-venv.sh "$(PYTHON)" $(VENV)
	@echo "Installing the package and its tools into $(VENV) ..."
	@$(PY) -m pip install -q --disable-pip-version-check 'pip>=23.1'
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@
