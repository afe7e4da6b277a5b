"""Find Helm, or build it from its Go module: `python -m tools.helm` prints the path."""

from __future__ import annotations

import sys

from tools.go_tool import GoTool, ToolUnavailableError

HELM = GoTool(
    name="helm",
    package="helm.sh/helm/v3/cmd/helm",
    version="v3.19.5",
    version_variable="helm.sh/helm/v3/internal/version.version",
    version_arguments=("version", "--template", "{{.Version}}"),
    version_prefix="v3.",
)

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{HELM.path()}\n")
    except ToolUnavailableError as error:
        sys.exit(str(error))
