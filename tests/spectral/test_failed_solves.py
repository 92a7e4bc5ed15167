"""What comes of a solve that did not converge: nothing, and the run says so."""

from distinf.spectral import solves
from tests.support.partial import points_config, run_until
from tests.support.runs import all_scores, same_bits

PLAIN = {"scores": {"damping": 0.5, "negative": "keep"}}
HOPELESS = {"refine": 2, "refine_steps": 1, "refine_tolerance": 1e-9}


def test_a_solve_that_did_not_converge_is_not_used_for_scores(tmp_path):
    none = {"curvature": {"refine": 0}}
    plain = run_until("scores", points_config(tmp_path / "plain", **PLAIN, **none))
    tried = run_until("scores", points_config(tmp_path / "tried", curvature=HOPELESS, **PLAIN))
    ends = [record["summary"]["status"] for record in solves.solves(tried).values()]
    assert ends == ["stagnated", "stagnated"]
    assert same_bits(all_scores(tried), all_scores(plain))
