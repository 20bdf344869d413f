# steerloop's recipes. They use .venv when it is there, else the python on the path.

python := if path_exists(".venv/bin/python") == "true" { ".venv/bin/python" } else { "python3" }

# list the recipes
default:
    @{{ just_executable() }} --list

# a real run on gemma-3-1b-it (one 24 GB GPU); flags may follow
run *ARGS:
    {{ python }} -m steerloop.train --model gemma-3-1b-it {{ ARGS }}

# the embedded model with its default settings: three rounds in minutes on a CPU
demo *ARGS:
    {{ python }} -m steerloop.train {{ ARGS }}

# the whole pipeline at the smallest scale, types checked: under a minute
tiny *ARGS:
    {{ python }} -m steerloop.train --tiny {{ ARGS }}

# two rounds along the path of real runs, types checked: a random Gemma-3 in NF4, thought on
fast-dev-run *ARGS:
    {{ python }} -m steerloop.checks.fast_dev_run {{ ARGS }}

# lint, line budget, every check: what has to be green before a commit
gate *ARGS:
    {{ python }} -m ruff check .
    {{ python }} -m steerloop.checks.lines
    {{ python }} -m pytest -n auto --dist loadfile --no-loadscope-reorder {{ ARGS }}

# the gate, the long checks, every mutant, real weights, and the acceptance table of the shipped ones
gate-long: gate && mutate
    {{ python }} -m pytest -n auto -m 'long and not real'
    STEERLOOP_MANY=1 {{ python }} -m pytest -n auto $(grep -l 'many import many' steerloop/checks/check_*.py)
    {{ python }} -m pytest -m real -s
    {{ python }} -m steerloop.tinyworld.build --check

# the checks on pretrained models; one that was not fetched is skipped with the command that fetches it
gate-real *ARGS:
    {{ python }} -m pytest -m real -s {{ ARGS }}

# llama.cpp, vLLM and lm-evaluation-harness load our exports and answer as the student does; environments of
# their own under build/, made once (gigabytes); one that does not install is skipped with a line
gate-consumers *PROGRAMS:
    {{ python }} -m steerloop.checks.consumers {{ PROGRAMS }}

# apply one-line patches that each break an invariant; the named check has to notice
mutate *NAMES:
    {{ python }} -m steerloop.checks.mutate {{ NAMES }}

# Where this project is built these cannot be fetched, so `--eval moralmaps` is checked against a stand-in with the
# interface of moral-maps (tinymfv until it was renamed) as read at a9a0132. docs/vendor/COMMITS says which are there.
# clone the public systems this one learned from into docs/vendor, or bring them up to date; --install adds their evaluation
vendor flag="":
    #!/usr/bin/env bash
    set -euo pipefail
    case "{{ flag }}" in
        "" | --install) ;;
        *) echo "error: vendor takes --install or nothing, not {{ flag }}" >&2; exit 2 ;;
    esac
    mkdir -p docs/vendor
    for repo in wassname/moral-maps wassname/steer-heal-love wassname/steering-lite \
        wassname/lora-lite wassname/w2schar-mini wassname/isokl_steering_calibration vgel/repeng \
        karpathy/nanochat; do
        target=docs/vendor/${repo#*/}
        if [ -d "$target" ]; then
            git -C "$target" fetch --quiet --depth 1 origin HEAD
            git -C "$target" reset --quiet --hard FETCH_HEAD
        else
            git clone --quiet --depth 1 "https://github.com/$repo" "$target"
        fi
        echo "$repo $(git -C "$target" log -1 --format='%H %cs')"
    done | tee docs/vendor/COMMITS
    [ -z "{{ flag }}" ] || {{ python }} -m pip install -e docs/vendor/moral-maps

# sweeps over loop seeds 0, 1, 2, newest first; `just queue NAME` runs one of them
queue only="":
    #!/usr/bin/env bash
    set -euo pipefail
    sweep() {
        [ -z "{{ only }}" ] || [ "{{ only }}" = "$1" ] || return 0
        for seed in 0 1 2; do {{ python }} -m steerloop.train --seed $seed "${@:2}"; done
    }
    dirty="--no_filter --multiples 1 1.75 2.5"
    # H: over ten rounds a reference that moves along lets drift compound; the base does not
    sweep long-base --rounds 10 --ref base --coh_floor 0
    sweep long-prev --rounds 10 --ref prev --coh_floor 0
    # H: on overdosed, unfiltered data plain distillation breaks the model, the barrier heals it
    sweep dirty-nll $dirty --barrier nll --coh_floor 0
    sweep dirty-base $dirty --ref base --coh_floor 0 --lam 1
    sweep dirty-prev $dirty --ref prev --coh_floor 0
    # H: with default settings the trait is in the weights after three rounds, coherence kept
    sweep default

# what kind of barrier, which aggregate: 8 arms x 3 seeds, resumable; tables go to docs/results.md
sweep-barrier *ARGS:
    # H: with tau set from each one's own operating KL, the hinges on KL cost least per nat of trait
    {{ python }} -m steerloop.sweep barrier --seeds 0 1 2 {{ ARGS }}

# a sweep by name (baselines, frontier, references, barrier, rounds, real, nf4, held), resumable; flags may follow
sweep *ARGS:
    {{ python }} -m steerloop.sweep {{ ARGS }}

# a first run on your own model: checks, U0 of traits until one passes, one round with its rivals, a bundle to send
first-run model="gemma-3-1b-it" traits="care_over_authority care_over_norms" *ARGS:
    #!/usr/bin/env bash
    # H: what an earlier prototype saw on this model is seen here, or the readouts say that they are blind
    set -euo pipefail
    at="runs/first/$(basename "{{ model }}")"
    if compgen -G "$at/*/summary.json" >/dev/null; then echo "$at: trained before"
    elif run=$(compgen -G "$at/*/config.json"); then
        {{ python }} -m steerloop.train --resume "$(dirname "$run")"
    else
        {{ python }} -m steerloop.checks.fast_dev_run
        read -r first _ <<< "{{ traits }}"
        for trait in {{ traits }}; do
            if {{ python }} -m steerloop.traits check "$trait" --model "{{ model }}" {{ ARGS }}; then break; fi
            trait=$first
        done
        {{ python }} -m steerloop.train --model "{{ model }}" --trait "$trait" --rounds 1 --baselines \
            --runs "$at" {{ ARGS }}
    fi
    {{ python }} -m steerloop.report.published "$at"/*/
    bundle=$(compgen -G "$at/*/exports/bundle.tar.gz") || {{ python }} -m steerloop.export "$at"/*/ --to bundle
    [ -z "$bundle" ] || echo "$bundle"

# the second embedded model, half an hour: settings are tuned on it, results reported on both
second-model:
    OMP_NUM_THREADS=1 {{ python }} -m steerloop.tinyworld.build --seed 1 \
        --work runs/tinyworld-build-1 --out runs/tinyworld-seed1

# the API reference, from the docstrings, into build/docs
docs:
    {{ python }} -W ignore -m pdoc -o build/docs steerloop \
        $(cd steerloop && for x in */; do [ -f $x/__init__.py ] && echo "!steerloop.${x%/}"; done \
        | grep -vE 'export|chat|score')

# lm-evaluation-harness on a merged export and on its base: a small local task, an environment of its own
lm-eval MERGED BASE="steerloop/tinyworld/model":
    #!/usr/bin/env bash
    # H: other people's harness loads the export, and it answers ordinary questions as the base does
    set -euo pipefail
    [ -x build/lm-eval/bin/lm_eval ] || { {{ python }} -m venv build/lm-eval
        build/lm-eval/bin/pip install -q lm_eval 'torch>=2.9,<2.14' 'transformers<6' accelerate; }
    for model in "{{ BASE }}" "{{ MERGED }}"; do
        HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 build/lm-eval/bin/lm_eval --model hf --device cpu \
            --model_args "pretrained=$model,dtype=float32" --apply_chat_template --batch_size 8 \
            --tasks steerloop_mundane --include_path steerloop/export/tasks
    done

# the ledger of all runs, grouped by arm, and their page; with run folders: one of them anew, or several compared
results *RUNS:
    {{ python }} -m steerloop.report {{ RUNS }}

# sort imports and mend what the linter can
fmt:
    {{ python }} -m ruff check --fix .
