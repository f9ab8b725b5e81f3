"""What says who may do what with the code, and how it is checked, agrees with the code."""

from __future__ import annotations

from pathlib import Path

import yaml

import facestream

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version_and_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == facestream.VERSION
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert facestream.VERSION in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_a_landing_must_pass():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == ".ci/run"
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
