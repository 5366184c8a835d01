"""Types of OpenAI's files and batches: the gateway serves them, the command line reads them.

Times are Unix seconds, as OpenAI gives them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "ENDED",
    "PURPOSES",
    "STATUSES",
    "BatchInfo",
    "BatchList",
    "BatchProblem",
    "BatchProblems",
    "BatchSpec",
    "BatchStatus",
    "FileDeleted",
    "FileInfo",
    "FileList",
    "RequestCounts",
]

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
STATUSES: Final[tuple[BatchStatus, ...]] = get_args(BatchStatus)
ENDED: Final[frozenset[BatchStatus]] = frozenset(("failed", "completed", "expired", "cancelled"))
# What OpenAI's API takes for an upload; `batch_output` is given by the server alone.
PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")

Name = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileInfo(_Wire):
    """One stored file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(_Wire):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileInfo]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(_Wire):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchSpec(_Wire):
    """The batch to make."""

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    endpoint: str
    completion_window: str
    metadata: dict[Name, Value] | None = Field(None, max_length=16)


class BatchProblem(_Wire):
    """What is wrong with an input file, or why a batch ended early. `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchProblems(_Wire):
    """All that was found; of many only the first."""

    object: Literal["list"] = "list"
    data: list[BatchProblem]


class RequestCounts(_Wire):
    """How many lines there are, were answered, and were answered with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchInfo(_Wire):
    """One batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchProblems | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchList(_Wire):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchInfo]
    first_id: str | None
    last_id: str | None
    has_more: bool
