"""Shadow and audit: what an app's own sending does wrong, judged without touching it."""

from typing import TYPE_CHECKING, Any

from commitcast.audit.report import AuditReport, BreachKind, CallSite, Finding

if TYPE_CHECKING:
    from commitcast.audit.shadow import Shadow

__all__ = ["AuditReport", "BreachKind", "CallSite", "Finding", "Shadow"]


def __getattr__(name: str) -> Any:
    # The pytest plugin is imported in every run of pytest, and the judge only where it is wanted.
    if name == "Shadow":
        from commitcast.audit.shadow import Shadow

        return Shadow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
