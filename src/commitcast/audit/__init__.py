"""Shadow and audit: what an app's own sending does wrong, judged without touching it."""

from commitcast.audit.report import AuditReport, BreachKind, CallSite, Finding
from commitcast.audit.shadow import Shadow

__all__ = ["AuditReport", "BreachKind", "CallSite", "Finding", "Shadow"]
