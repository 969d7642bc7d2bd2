"""What a table promises by itself, and the samplers' corners that diffusers has no counterpart for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.errors import InvalidRequest
from pipeline.samplers import HISTORY, NOISE_COLUMN, OUT_COLUMN, SAMPLERS, STATE, table
from pipeline.schedule import alphas_cumprod
from tests.support.trajectories import SD, difference, draws, network, ours, theirs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

STOCHASTIC = {"ddpm", "euler_a", "lcm", *(name for name in SAMPLERS if "sde" in name)}
REMEMBERED = {"ddim": 0, "ddpm": 0, "euler": 0, "euler_a": 0, "lcm": 0, "heun": 2, "dpmpp_2m": 1, "dpmpp_2m_sde": 1}
REMEMBERED |= {"dpmpp_3m_sde": 2, "unipc": 3, "pndm": 4}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_sampler_does_not_remember_is_zero(sampler: str) -> None:
    remembered = REMEMBERED[sampler.removesuffix("_karras")]
    for steps in (1, 2, 12, 40):
        run = table(SD, sampler, steps)
        assert run.matrices.shape == (run.evaluations, STATE + 1, STATE + 2) and np.isfinite(run.matrices).all()
        assert not run.matrices[:, 1 + remembered : STATE].any(), "a row of history that nobody reads"
        assert not run.matrices[:, :, 1 + remembered : STATE].any(), "a column of history that nobody wrote"
        assert not run.matrices[0, [0, STATE], 1:STATE].any(), "the first step has no history"
        assert run.matrices[:, STATE, OUT_COLUMN].all(), "what the network says counts"
    if remembered:
        read = run.matrices[:, :, 1 : 1 + remembered].any(axis=(0, 1))
        assert read.all(), f"of {HISTORY} rows it needs {remembered}"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_each_evaluation_but_the_last_draws_noise_in_order_or_none_does(sampler: str, steps: int) -> None:
    run = table(SD, sampler, steps)
    used = run.matrices[:, :, NOISE_COLUMN].any(axis=1)
    np.testing.assert_array_equal(used, run.noise >= 0)
    assert run.draws == (steps - 1 if sampler in STOCHASTIC else 0)
    np.testing.assert_array_equal(run.noise[run.noise >= 0], np.arange(run.draws))
    assert run.noise[-1] == -1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_and_steps(sampler: str) -> None:
    for steps in (1, 2, 3, 20):
        run = table(SD, sampler, steps)
        wanted = {"heun": 2 * steps - 1, "pndm": steps + 1 if steps > 1 else 1}.get(sampler.split("_")[0], steps)
        assert run.evaluations == len(run.timesteps) == len(run.input_scales) == len(run.noise) == wanted
        done = [run.steps_after(evaluations) for evaluations in range(wanted + 1)]
        assert done == [0, *run.steps_done.tolist()] and done[-1] == steps
        assert set(np.diff(done).tolist()) <= {0, 1}, "a step ends with one of the evaluations"
    assert table(SD, "heun", 3).steps_done.tolist() == [0, 1, 1, 2, 3]
    assert table(SD, "pndm", 3).steps_done.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_ends_at_the_predicted_picture(sampler: str) -> None:
    """The last noise level is zero, or for DDIM and PNDM without set_alpha_to_one the first training step's."""
    run = ours(dataclasses.replace(SD, set_alpha_to_one=True), sampler, 9)
    assert run.x0 is not None
    if sampler == "pndm":  # it moves along a combination of outputs, not along the last one
        assert difference(run.x[-1:], run.x0[-1:]) < 0.05
    else:
        assert difference(run.x[-1:], run.x0[-1:]) < 1e-12


@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"lcm", "pndm"}))
def test_it_does_not_matter_how_a_network_says_what_it_predicts(sampler: str) -> None:
    """Three networks of one mind, Salimans & Ho 2022, appendix D: x0, eps, and v = alpha eps - sigma x0."""
    drawn = draws(13)
    ends = []
    plain = table(SD, sampler, 12)
    for prediction in ("epsilon", "v_prediction", "sample"):
        run = table(dataclasses.replace(SD, prediction=prediction), sampler, 12)
        terms = np.zeros((STATE + 2, *drawn.shape[1:]))
        terms[0] = drawn[0] * run.initial_scale
        for i, (matrix, t, scale) in enumerate(zip(run.matrices, run.timesteps, run.input_scales, strict=True)):
            if run.noise[i] >= 0:
                terms[NOISE_COLUMN] = drawn[1 + run.noise[i]]
            eps = terms[OUT_COLUMN] = network(terms[0] * scale, float(t))
            x0 = np.tensordot(plain.matrices[i, STATE], terms, axes=1)
            ratio = -plain.matrices[i, STATE, OUT_COLUMN]  # sigma / alpha: x0 = (x - sigma eps) / alpha
            v = (eps - ratio * x0) / np.hypot(1, ratio)
            terms[OUT_COLUMN] = {"epsilon": eps, "v_prediction": v, "sample": x0}[prediction]
            terms[:STATE] = np.tensordot(matrix[:STATE], terms, axes=1)
        ends.append(terms[0].copy())
    assert difference(ends[1][None], ends[0][None]) < 2e-6, "float32 alpha and sigma: their squares sum to 1 to 1e-7"
    assert difference(ends[2][None], ends[0][None]) < 2e-6


def test_pndm_shows_what_its_network_predicts() -> None:
    """diffusers' scheduler does not tell its x0."""
    run, state = table(SD, "pndm", 6), ours(SD, "pndm", 6)
    assert state.x0 is not None
    seen = np.concatenate([draws(1), state.x[:-1]])  # its noise starts at unit variance
    kept = alphas_cumprod(SD)[run.timesteps.astype(int)].reshape(-1, *[1] * (seen.ndim - 1))
    outs = np.stack([network(x, float(t)) for x, t in zip(seen, run.timesteps, strict=True)])
    assert difference(state.x0, (seen - np.sqrt(1 - kept) * outs) / np.sqrt(kept)) < 1e-6


@pytest.mark.usefixtures("rounded_roots")
@pytest.mark.parametrize(("sampler", "spacings"), [("heun", ("leading", "trailing")), ("pndm", ("leading",))])
def test_zero_terminal_snr_where_diffusers_ignores_it(sampler: str, spacings: tuple[str, ...]) -> None:
    """Its Heun and PNDM start such a model at a noise level that it was not trained at; ours start where the others do.

    Given those alphas they agree. (PNDM divides by the last one, zero, where a run visits it; ours is DDIM's form.)
    """
    for spacing in spacings:
        spec = dataclasses.replace(SD, prediction="v_prediction", spacing=spacing, rescale_betas_zero_snr=True)
        kept = alphas_cumprod(spec).astype(np.float32)
        kept[-1] = 2**-24
        for steps in (2, 7, 20):
            wanted = theirs(spec, sampler, steps, alphas_cumprod=torch.from_numpy(kept))
            assert difference(ours(spec, sampler, steps).x, wanted.x) < 1e-5, (spacing, steps)
            assert difference(ours(spec, sampler, steps).x, theirs(spec, sampler, steps).x) > 1e-3
    visiting = dataclasses.replace(spec, spacing="trailing")
    assert np.isfinite(ours(visiting, sampler, 20).x).all()


def test_the_third_order_has_the_sign_of_diffusers() -> None:
    """k-diffusion's sample_dpmpp_3m_sde adds (0.5 - phi) of the curvature, diffusers 0.42.1 (-0.5 - phi).

    Should diffusers change, the trajectories fail; this says by how much the two differ: by the whole curvature.
    """
    sampler, steps, i = "dpmpp_3m_sde", 20, 9
    run = table(SD, sampler, steps)
    kept = alphas_cumprod(SD)[run.timesteps.astype(int)]
    logs = 0.5 * np.log(kept / (1 - kept))
    h, h_0, h_1 = logs[i + 1] - logs[i], logs[i] - logs[i - 1], logs[i - 1] - logs[i - 2]
    alpha, r0, r1 = np.sqrt(kept[i + 1]), h_0 / h, h_1 / h
    phi = (np.expm1(-2 * h) + 2 * h) / (2 * h) ** 2
    # Of h2, the x0 two evaluations ago: -1 / r1 of the second difference, which both derivatives have.
    older = 1 / r1 * np.array([-r0 / (r0 + r1) * -1, 1 / (r0 + r1)])  # in d1 and in d2
    by_paper = alpha * (2 * h * phi * older[0] + (0.5 - phi) * older[1])
    by_diffusers = alpha * (2 * h * phi * older[0] + (-0.5 - phi) * older[1])
    assert run.matrices[i, 0, 2] == pytest.approx(by_diffusers, rel=1e-3)
    assert abs(by_paper - by_diffusers) == pytest.approx(alpha * older[1])


def test_a_table_is_made_once() -> None:
    assert table(SD, "euler", 33) is table(dataclasses.replace(SD), "euler", 33)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 0), ("euler", -3), ("dpmpp_2m", 1001), ("ddim", 10**9)])
def test_steps_out_of_range(sampler: str, steps: int) -> None:
    with pytest.raises(InvalidRequest, match=f"steps is {steps}"):
        table(SD, sampler, steps)


def test_lcm_takes_the_steps_of_its_distillation() -> None:
    assert table(SD, "lcm", 50).evaluations == 50
    with pytest.raises(InvalidRequest, match="steps is 51; sampler lcm takes 1 to 50"):
        table(SD, "lcm", 51)
    with pytest.raises(InvalidRequest, match="lcm needs a model of at least 50 timesteps, not 49"):
        table(dataclasses.replace(SD, train_steps=49), "lcm", 1)


def test_pndm_does_not_combine_predicted_samples() -> None:
    with pytest.raises(InvalidRequest, match="pndm combines predictions of noise or v"):
        table(dataclasses.replace(SD, prediction="sample"), "pndm", 4)


def test_an_unknown_sampler_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="sampler is 'euler_a_karras'; it must be one of ddim, ddpm, euler, "):
        table(SD, "euler_a_karras", 20)
