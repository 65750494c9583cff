"""Links to files of the repository lead to the pages that the site makes of them."""

import re

PAGES = {
    "CHANGELOG.md": "generated/changelog.md",
    "CONTRIBUTING.md": "generated/contributing.md",
    "SECURITY.md": "generated/security.md",
    "examples/benchmarks/README.md": "generated/benchmarks.md",
    "examples/paper/README.md": "generated/paper.md",
    "zoo/README.md": "generated/recipes.md",
}


def lead_to_pages(app, docname: str, source: list[str]) -> None:
    """Change the links of a page before it is parsed."""
    up = "../" * docname.count("/")

    def page(link: re.Match) -> str:
        example = re.fullmatch(r"examples/(\w+/plot_\w+)\.py", link[1])
        found = f"auto_examples/{example[1]}.rst" if example else PAGES.get(link[1])
        return f"]({up}{found}" if found else link[0]

    source[0] = re.sub(r"\]\((?:\.\./)+([\w/.]+)", page, source[0])


def setup(app) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", lead_to_pages)
    return {"parallel_read_safe": True}
