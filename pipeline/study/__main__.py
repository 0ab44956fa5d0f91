"""`python -m pipeline.study STAGE`: the dose x overlap x gridsize study, stage by stage."""

from __future__ import annotations

from pipeline.cli import lazy_group

VERBS = {
    "design": ("pipeline.study.commands:design", "what the study varies and holds fixed"),
    "generate": ("pipeline.study.commands:generate", "phase C: a base scan again at each dose, split in two"),
    "overlap": ("pipeline.study.commands:overlap", "phase D: views of each dose, and how much they overlap"),
    "train": ("pipeline.study.commands:train", "phase E: a bundle for each dose, view and gridsize"),
    "verify": ("pipeline.study.commands:verify", "re-hash everything that the manifests claim"),
    "status": ("pipeline.study.commands:status", "what is done and what is left"),
}

main = lazy_group("The dose x overlap x gridsize study, stage by stage; each can be stopped and gone on with.", VERBS)

if __name__ == "__main__":
    main()
