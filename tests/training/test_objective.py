import pytest
import torch

from video_lora_studio.training.objective import FlowMatching, ShiftedLogitNormal, mean_squared_error, shifted
from video_lora_studio.training.seeds import generator


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform"])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_levels_follow_the_shifted_distribution(timesteps, shift):
    objective = FlowMatching(timesteps=timesteps, shift=shift)
    levels = objective.draw(torch.Size([200_000]), generator(0, "level"))
    assert levels.dtype == torch.float32 and levels.min() >= 0 and levels.max() <= 1
    normal = torch.tensor([-1.0, 0.0, 1.0])
    below = torch.sigmoid(normal) if timesteps == "logit-normal" else torch.tensor([0.2, 0.5, 0.8])
    share = torch.special.ndtr(normal) if timesteps == "logit-normal" else below
    for edge, expected in zip(shifted(below, shift), share, strict=True):
        assert (levels < edge).float().mean().item() == pytest.approx(expected.item(), abs=0.005)


def test_half_of_shift_three_lies_above_three_quarters():
    levels = FlowMatching(shift=3.0).draw(torch.Size([100_001]), generator(1, "level"))
    assert levels.median().item() == pytest.approx(0.75, abs=0.005)


def test_the_target_leads_from_the_noisy_sample_to_the_clean_one():
    clean, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    level = torch.tensor([0.0, 0.3, 1.0])
    objective = FlowMatching()
    noisy = objective.noisy(clean, noise, level)
    torch.testing.assert_close(noisy - level.view(-1, 1, 1) * objective.target(clean, noise, level), clean)
    torch.testing.assert_close(noisy[0], clean[0])
    torch.testing.assert_close(noisy[2], noise[2])


def test_the_loss_is_taken_in_float32():
    answer, target = torch.full((4,), 1.0, dtype=torch.bfloat16), torch.full((4,), 1.001)
    loss = mean_squared_error(answer, target)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1e-6, rel=1e-2)


def test_draws_depend_on_seed_purpose_and_position_alone():
    def draw(*of):
        return torch.randn(4, generator=generator(*of)).tolist()

    assert draw(1, "noise", 5) == draw(1, "noise", 5)
    assert len({tuple(draw(*of)) for of in [(1, "noise", 5), (2, "noise", 5), (1, "level", 5), (1, "noise", 6)]}) == 4


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform"])
@pytest.mark.parametrize("levels", [(0.875, 1.0), (0.0, 0.875), (0.9, 1.0)])
def test_a_range_of_levels_is_cut_out_and_not_squeezed(timesteps, levels):
    """Drawing in a range gives what drawing everywhere and dropping the rest would."""
    whole = FlowMatching(timesteps=timesteps, shift=5.0).draw(torch.Size([400_000]), generator(0, "whole"))
    kept = whole[(whole >= levels[0]) & (whole <= levels[1])]
    cut = FlowMatching(timesteps=timesteps, shift=5.0, levels=levels).draw(torch.Size([100_000]), generator(0, "cut"))
    assert cut.min() >= levels[0] - 1e-7 and cut.max() <= levels[1] + 1e-7
    parts = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(cut.quantile(parts), kept[:100_000].quantile(parts), atol=0.006, rtol=0)


def test_what_was_given_is_out_of_the_loss():
    answer, target = torch.zeros(2, 1, 3), torch.ones(2, 1, 3)
    answer[0, 0, 0] = 100.0
    given = torch.tensor([[[True, False, False]], [[False, False, False]]])
    assert mean_squared_error(answer, target, given).item() == pytest.approx(1.0)


def own_distribution(tokens, **settings):
    return ShiftedLogitNormal(tokens=lambda shape: tokens, **settings)


@pytest.mark.parametrize("tokens, mean", [(256, 0.675), (1024, 0.95), (2688, 1.5458), (4096, 2.05), (14080, 5.625)])
def test_the_mean_rises_with_the_tokens(tokens, mean):
    assert own_distribution(tokens).mean(tokens) == pytest.approx(mean, abs=1e-3)
    assert own_distribution(tokens, logit_mean=-0.5).mean(tokens) == pytest.approx(mean - 0.5, abs=1e-3)


@pytest.mark.parametrize("std", [0.7, 1.0])
@pytest.mark.parametrize("tokens", [126, 2688, 14080])
def test_levels_follow_the_stretched_distribution_of_their_tokens(tokens, std):
    objective = own_distribution(tokens, logit_std=std)
    levels = objective.draw(torch.Size([200_000, 3]), generator(0, "level"))
    assert levels.shape == (200_000,) and levels.dtype == torch.float32
    assert levels.min() >= 1e-3 and levels.max() <= 1
    normal = torch.tensor([-2.5758, 3.0902, -1.0, 0.0, 1.0], dtype=torch.float64)
    low, high, *edges = torch.sigmoid(objective.mean(tokens) + std * normal).tolist()
    for edge, share in zip(edges, torch.special.ndtr(normal[2:]).tolist(), strict=True):
        edge = (edge - low) / (high - low)
        assert (levels < edge).float().mean().item() == pytest.approx(0.9 * share + 0.1 * edge, abs=0.005)


def test_levels_of_very_many_tokens_are_still_spread():
    many, more = (own_distribution(tokens).draw(torch.Size([50_000]), generator(0, "level"))
                  for tokens in (100_000, 1_000_000))
    assert many.isfinite().all() and 0.85 < many.median() < 0.95 and many.quantile(0.05) < 0.4
    torch.testing.assert_close(many, more, atol=1e-5, rtol=0)


def test_levels_that_depend_on_tokens_are_flow_matching_otherwise():
    clean, noise, level = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0.2, 0.9])
    objective = own_distribution(100)
    assert torch.equal(objective.noisy(clean, noise, level), FlowMatching().noisy(clean, noise, level))
    assert torch.equal(objective.target(clean, noise, level), FlowMatching().target(clean, noise, level))
