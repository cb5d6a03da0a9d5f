"""The README's Python runs, its commands exist, its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_python_block_runs_as_written(capsys):
    exec(compile(blocks("python")[0], "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("(64, 96, 3) (64, 96, 1)")


def test_the_python_of_the_environments_page_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    page = (ROOT / "docs" / "env.md").read_text()
    told = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/env.md", "exec"), told)
    assert (
        told["data"].total_steps == 3 and (told["observation"]["rgb"] == told["data"][0].observations["rgb"][2]).all()
    )


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_every_module_that_the_readme_runs_exists():
    for module in re.findall(r"-m ([\w.]+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists() or module in ("venv", "pip"), module


def test_every_recipe_of_the_readme_exists():
    from training.recipes import RECIPES

    assert set(re.findall(r"--recipe (\w+)", README)) <= set(RECIPES)


def test_every_link_leads_to_a_file():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)
