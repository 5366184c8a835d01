"""The flows that this package offers as models."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage.apps.docs_qa import served_flow
from sage.common.config import PipelineConfig
from sage.common.errors import ConfigError
from sage.middleware.operators.records import Question
from sage.middleware.pipelines.flows import flow_of


def test_docs_qa_is_found_by_its_name_and_answers_questions(tmp_path: Path) -> None:
    params = {"index": str(tmp_path), "chat": "talker", "embed": "vectors"}
    flow = flow_of(PipelineConfig(name="docs", flow="docs-qa", params=params))
    assert flow.plan.nodes[0].fn is Question
    assert [node.name for node in flow.plan.nodes[1:-1]] == ["retrieve", "prompt", "generate", "refine"]


@pytest.mark.parametrize(
    ("chat", "sentences", "focuses"),
    [("sage-nano", None, True), ("sage-nano", 0, False), ("talker", 6, True), ("talker", None, False)],
)
def test_a_very_small_model_gets_few_sentences(
    tmp_path: Path, chat: str, sentences: int | None, focuses: bool
) -> None:
    flow = served_flow(str(tmp_path), chat, "vectors", sentences=sentences)
    assert ("focus" in [node.name for node in flow.plan.nodes]) is focuses


def test_what_it_cannot_do_without_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Pipeline docs: .*docs-qa.* missing 2 required"):
        flow_of(PipelineConfig(name="docs", flow="docs-qa", params={"index": str(tmp_path)}))
