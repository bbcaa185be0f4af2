"""What mkdocs needs beside its plugins: formulas as MathML, the changelog, and copies of files outside of docs/."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parent.parent
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_SHIM = "https://unpkg.com/iframe-worker/shim"
_LINK = re.compile(r"\]\((?:\.\./)+((?:configs|experiments|ld3_jax|results|tests)/[^)#]+)\)")


def on_files(files, config):
    """Pages link to files outside of docs/ as a code host shows them; the site gets a copy of each."""
    pages = [file for file in files.documentation_pages() if (ROOT / "docs" / file.src_uri).exists()]
    for name in sorted({name for page in pages for name in _LINK.findall(page.content_string)}):
        copy = File.generated(config, f"../{name}", abs_src_path=str(ROOT / name), inclusion=InclusionLevel.NOT_IN_NAV)
        copy.dest_uri = f"files/{name.removesuffix('.md')}{'.html' * name.endswith('.md')}"
        files.append(copy)
    return files


def on_page_markdown(markdown, page, **_):
    """The page of changes is the repository's own file."""
    if page.file.src_uri == "changelog.md":
        return (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
    return markdown


def on_post_page(output, page, **_):
    """The theme fetches one script from the network; the site has a copy of it."""
    return output.replace(_SHIM, "../" * page.url.count("/") + "assets/iframe-worker.js")


def on_post_template(output_content, template_name, **_):
    """The same in the page for addresses that do not exist, which a server shows."""
    return output_content.replace(_SHIM, "/assets/iframe-worker.js") if template_name == "404.html" else output_content


def on_page_content(content, **_):
    """Formulas as MathML, which browsers draw without a script or a font."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found):
    tag, bracket, formula = found.groups()
    display = "block" if bracket == "[" else "inline"
    return f'<{tag} class="formula">{convert(html.unescape(formula.strip()), display=display)}</{tag}>'
