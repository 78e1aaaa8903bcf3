"""What the texts in a picture are called, and by whom."""

from __future__ import annotations

TEXT_CHUNK = "parameters"
"""The text of AUTOMATIC1111's web UI, which most tools write and read."""
RECORD_CHUNK = "safelight"
"""Our own: a `Record`, from which the same bytes can be made again."""
GRAPH = "prompt"
"""ComfyUI: the nodes that ran, as its API takes them."""
WORKFLOW = "workflow"
"""ComfyUI: the same as it was drawn on the screen."""
INVOKE = ("invokeai_metadata", "sd-metadata", "Dream")
"""InvokeAI since 3, of 2, and of 1."""
SOFTWARE, COMMENT, DESCRIPTION, SOURCE = "Software", "Comment", "Description", "Source"
"""NovelAI (the last three beside Software=NovelAI)."""

READ = frozenset({TEXT_CHUNK, RECORD_CHUNK, GRAPH, WORKFLOW, *INVOKE, SOFTWARE, COMMENT, DESCRIPTION, SOURCE})
