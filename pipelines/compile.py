"""Write what is derived from the sources: compiled pipelines and the components' pages.

Run `python -m pipelines.compile` from the checkout.
"""

from pathlib import Path

from components.readme import write_readmes

from sssflow.pipeline.ir import PIPELINES, compile_pipeline


def main() -> None:
    """Compile every pipeline beside its source, and write every component's README.md."""
    checkout = Path(__file__).parents[1]
    for name in PIPELINES:
        compile_pipeline(name, checkout / "pipelines" / f"{name}.yaml", checkout=checkout)
    write_readmes(checkout / "components")


if __name__ == "__main__":
    main()
