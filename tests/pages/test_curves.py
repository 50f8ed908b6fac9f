"""Curves of several trainings over each other, and the pull of each term of a loss."""

from __future__ import annotations

import math

import pytest

from app.pages import charts
from app.pages.curves import smoothed
from app.store.tables import Job
from tests.pages.conftest import Site
from tests.pages.gallery import SKELETON_LOSS, Curator


def test_curves_of_two_trainings_are_drawn_over_each_other(site: Site) -> None:
    jobs = [site.gallery.jobs[f"trained-{number}"] for number in (1, 2)]
    address = f"/jobs/curves?job={jobs[0]}&job={jobs[1]}&figure=dice&smooth=0.5&log=true"
    with site.visitor() as browser:
        page = browser.get(address).text
        facts = browser.get(address.replace("/curves?", "/curves.json?")).json()
        assert page.count('class="series series-2"') == 2, "in the legend and in the plot"
        assert all(str(job)[-6:] in page for job in jobs) and "Validation: Dice" in page
        assert [run["id"] for run in facts["runs"]] == [str(job) for job in jobs]
        assert facts["runs"][0]["points"][0][0] == 100
        assert "Training loss" in browser.get("/jobs/curves").text
        six = "&".join(f"job={jobs[0]}" for _ in range(6))
        for wrong in ("figure=shoe", "smooth=1", "job=x", six):
            assert browser.get(f"/jobs/curves?{wrong}").status_code == 422, wrong
        assert browser.get(f"/jobs/curves?job={site.gallery.foreign['job']}").status_code == 404


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    constant = smoothed([(step, 4.0) for step in range(3)], 0.9)
    assert [value for _, value in constant] == pytest.approx([4.0] * 3)
    assert smoothed([(0, 0.0), (1, 1.0)], 0.5) == [(0, 0.0), (1, pytest.approx(2 / 3))]
    assert smoothed([(0, 1.0), (1, math.inf), (2, 3.0)], 0.0) == [(0, 1.0), (2, 3.0)]


def test_logarithmic_scale_puts_equal_factors_at_equal_distances() -> None:
    chart = charts.draw("Loss", "", {"loss": [(0, 100.0), (1, 10.0), (2, 1.0), (3, 0.0)]}, log=True)
    heights = [float(place.split()[1]) for place in chart.lines[0].path[1:].split(" L")]
    assert len(heights) == 3 and heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert {"1", "10", "100"} <= {tick.label for tick in chart.y_ticks}


def test_job_shows_norm_and_direction_of_each_term(site: Site) -> None:
    with site.services.database.write() as session:
        curator = Curator(site.services, session, site.gallery.project_id)
        job = curator.training("running", upto=50, loss=SKELETON_LOSS, seed=9)
        for step in (10, 20):
            pulls = {"cross_entropy": {"norm": 2.0, "cosine": 0.5}, "dice": {"norm": 0.01, "cosine": -0.25}}
            curator.tell(job, "progress", {"step": step, "gradients": pulls, "loss": 1.0})
        job_id = job.id
    with site.visitor() as browser:
        page, facts = browser.get(f"/jobs/{job_id}").text, browser.get(f"/jobs/{job_id}.json").json()
        other = browser.get(f"/jobs/{site.gallery.jobs['trained-1']}").text
    assert "Pull of each term" in page and "Direction of each term" in page and "Pull of each term" not in other
    assert facts["curves"]["cosine"]["dice"] == [[10, -0.25], [20, -0.25]]
    with site.services.database.write() as session:
        session.delete(session.get_one(Job, job_id))
