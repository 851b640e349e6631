"""Every baseline's loss against one that is computed by hand, and where its gradient goes."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from sepme.baselines import BASELINES, sampling
from sepme.baselines._train import Student, TrainingSettings, distillation
from sepme.baselines.abconcept import PRESETS as ABLATION
from sepme.baselines.abconcept import AbConceptSettings, ablation_loss, prior_loss
from sepme.baselines.esd import ESDSettings, esd_target
from sepme.baselines.fmn import attention_logits, attention_loss, logits_loss
from sepme.baselines.prompts import OWN
from sepme.concept import Concept
from sepme.training import mix
from tests.miniature import NEON, PREDICTIONS, QUIET, shared, watched
from tests.tolerance import assert_close

ALL = TrainingSettings(trains="all")
PAIR = Concept("neon", ("neon", "neon boat"), "style", ("photo", "photo of boat"))


class Case:
    """A student that has learnt something, a batch of two, and the prompts' embeddings."""

    def __init__(self, prediction_type: str = "epsilon", trains: str = "all") -> None:
        self.backbone = shared(prediction_type)
        self.student = Student(self.backbone, replace(ALL, trains=trains))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for value in self.student.parameters.values():
                value.add_(0.02 * torch.randn(value.shape, generator=generator))
        shape = (2, *self.backbone.latent_shape)
        self.x_t, self.noise = (torch.randn(shape, generator=generator) for _ in range(2))
        self.t = torch.tensor([100, 700])
        encode = self.backbone.encode
        self.c, self.c_0 = encode(["neon", "neon boat"]), encode(["", ""])
        self.anchor = encode(["photo", "photo of boat"])

    def theta(self, c: Tensor) -> Tensor:
        return self.student.epsilon(self.x_t, self.t, c)

    def original(self, c: Tensor) -> Tensor:
        return self.backbone.epsilon(self.x_t, self.t, c)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        parameters, unused = list(self.student.parameters.values()), {"materialize_grads": True}
        return [*torch.autograd.grad(loss, parameters, retain_graph=True, **unused)]


def mse(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum() / a.numel()


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    scale = max(float(x.abs().max()) for x in b)
    return all(float((x - y).abs().max()) <= 1e-4 * scale for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------- ESD
def test_esd_s_target_by_hand_and_as_its_rewrite_has_it() -> None:
    """c predicts 3, nothing predicts 1: 1 - 1 (3 - 1) = -1, and 3 - 2 (3 - 1) = -1."""
    assert float(esd_target(torch.tensor(3.0), torch.tensor(1.0), 1.0)) == -1.0
    eps_c, eps_0 = torch.randn(2, 2, 4, 8, 8)
    for eta in (0.0, 0.5, 1.0, 3.0):
        factor = eta + 1  # the rewrite's negative_guidance
        assert_close(esd_target(eps_c, eps_0, eta), eps_c - factor * (eps_c - eps_0), scale=20.0)
    assert torch.equal(esd_target(eps_c, eps_0, 0.0), eps_0)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_esd_s_first_loss_by_hand(prediction_type: str) -> None:
    """At the start the student is the original, so L = (1 + eta)^2 mean (eps(c) - eps(0))^2."""
    backbone = shared(prediction_type)
    steps: list = []
    settings = ESDSettings(iterations=1, batch=2, steps=1, eta=2.0)
    BASELINES["esd-x"].erase(backbone, NEON, settings, seed=5, trainer=watched(steps))
    # With one step, no step is done: x_t is the noise. The draws, in the loop's order:
    generator = torch.Generator().manual_seed(mix(5, 0))
    torch.randint(1, (2,), generator=generator)  # which prompt
    torch.randint(1, (1,), generator=generator)  # which step
    t = torch.randint(0, 1000, (2,), generator=generator)
    x_t = torch.randn(2, *backbone.latent_shape, generator=generator)
    c, c_0 = backbone.encode(["neon", "neon"]), backbone.encode(["", ""])
    r = backbone.epsilon(x_t, t, c) - backbone.epsilon(x_t, t, c_0)
    assert steps[0].timesteps == tuple(t.tolist())
    assert steps[0].loss == pytest.approx(float(9 * r.square().mean()), rel=1e-4)


@pytest.mark.parametrize("sampler", ["student", "original"])
def test_who_draws_x_t(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    draw = sampling.sample

    def looked_at(predict: object, *rest: object) -> Tensor:
        asked.append(predict.__self__.__class__.__name__)
        return draw(predict, *rest)

    monkeypatch.setattr(sampling, "sample", looked_at)
    settings = ESDSettings(iterations=2, steps=3, sampler=sampler, pairing="aligned")
    BASELINES["esd-x"].erase(shared(), NEON, settings, trainer=QUIET)
    assert asked == [{"student": "Student", "original": "Backbone"}[sampler]] * 2


def test_esd_learns() -> None:
    steps: list = []
    fast = {"iterations": 30, "learning_rate": 3e-3, "batch": 4, "steps": 4}
    settings = ESDSettings(prompt=OWN, pairing="aligned", **fast)
    BASELINES["esd-x"].erase(shared(), PAIR, settings, trainer=watched(steps))
    losses = [step.loss for step in steps]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# ---------------------------------------------------------------------- SDD
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_sdd_s_loss_by_hand_with_a_constant_target(prediction_type: str) -> None:
    case = Case(prediction_type)
    loss = distillation(case.student, case.student, case.x_t, case.t, case.c, case.c_0)
    target = case.theta(case.c_0).detach()
    assert_close(loss, mse(case.theta(case.c), target))
    expected = case.gradients(mse(case.theta(case.c), target))
    assert same(case.gradients(loss), expected)
    # The negative control: without the stop-gradient the gradient is another.
    assert not same(case.gradients(mse(case.theta(case.c), case.theta(case.c_0))), expected)


# ---------------------------------------------------------------------- concept ablation
def ablation(case: Case, settings: AbConceptSettings) -> Tensor:
    about = (case.student, settings, case.x_t, case.t, case.noise)
    prior = prior_loss(*about, case.anchor)
    return ablation_loss(*about, case.c, case.anchor) + settings.prior_weight * prior


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ablation_s_losses_by_hand(prediction_type: str) -> None:
    case = Case(prediction_type)
    target = mse(case.theta(case.c), case.theta(case.anchor).detach())
    noise = mse(case.theta(case.c), case.noise)
    prior = mse(case.theta(case.anchor), case.noise)
    held = mse(case.theta(case.anchor), case.original(case.anchor))
    model = AbConceptSettings()
    assert_close(ablation(case, model), target)
    assert_close(ablation(case, replace(model, target="noise")), noise)
    assert_close(
        ablation(case, replace(model, prior="noise", prior_weight=0.2)), target + 0.2 * prior
    )
    taught = mse(case.theta(case.c), case.original(case.anchor))
    assert_close(ablation(case, ABLATION["sepme_paper"]), taught + 10 * held)
    assert abs(taught - target).item() > 0.01 * target.item()  # they are not the same teacher


def test_ablation_s_anchor_is_a_constant_but_its_prior_is_not() -> None:
    case = Case(trains="attn2_kv")
    target = case.theta(case.anchor).detach()
    expected = case.gradients(mse(case.theta(case.c), target))
    assert same(case.gradients(ablation(case, AbConceptSettings())), expected)
    prior = AbConceptSettings(prior="original")
    assert not same(case.gradients(ablation(case, prior)), expected)


# ---------------------------------------------------------------------- Forget-Me-Not
def scores_by_diffusers(case: Case, c: Tensor) -> list[Tensor]:
    """Attention probabilities of every attn2 `[n * heads, pixels, tokens]`, by diffusers' code."""
    found: list[Tensor] = []

    def read(attn: Attention, args: tuple, kwargs: dict) -> None:
        query = attn.head_to_batch_dim(attn.to_q(args[0]))
        key = attn.head_to_batch_dim(attn.to_k(kwargs["encoder_hidden_states"]))
        found.append(attn.get_attention_scores(query, key))

    hooks = [
        module.register_forward_pre_hook(read, with_kwargs=True)
        for name, module in case.backbone.unet.named_modules()
        if name.endswith("attn2")
    ]
    case.theta(c)
    for hook in hooks:
        hook.remove()
    return found


def test_the_recorded_logits_are_those_of_diffusers() -> None:
    case = Case()
    logits = attention_logits(case.student, case.x_t, case.t, case.c)
    expected = scores_by_diffusers(case, case.c)
    assert len(logits) == len(expected) == len(case.backbone.projections()) // 2
    for mine, theirs in zip(logits, expected, strict=True):
        assert mine.shape[0] == 2
        assert_close(mine.softmax(-1).flatten(0, 1), theirs)


def test_forget_me_not_s_loss_by_hand() -> None:
    case = Case()
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[0, [1, 2]] = mask[1, [3]] = True
    total = 0.0
    for probabilities in scores_by_diffusers(case, case.c):
        first, second = probabilities.detach().double().chunk(2)  # the heads of each sample
        total += float(first[..., [1, 2]].square().sum() + second[..., [3]].square().sum())
    loss = attention_loss(case.student, case.x_t, case.t, case.c, mask)
    assert_close(loss, total**0.5)


def test_the_loss_on_logits_by_hand_with_both_gradients() -> None:
    case = Case(trains="attn2_kv")
    loss = logits_loss(case.student, case.x_t, case.t, case.c, case.c_0)
    with_c = attention_logits(case.student, case.x_t, case.t, case.c)
    without = attention_logits(case.student, case.x_t, case.t, case.c_0)
    by_hand = sum(mse(a, b) for a, b in zip(with_c, without, strict=True))
    assert_close(loss, by_hand, scale=10 * by_hand.item())
    assert same(case.gradients(loss), case.gradients(by_hand))
    constant = sum(mse(a, b.detach()) for a, b in zip(with_c, without, strict=True))
    assert not same(case.gradients(loss), case.gradients(constant))


def test_attention_s_gradient_reaches_keys_and_queries_but_not_the_last_values() -> None:
    case = Case(trains="attn2")
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, 1] = True
    loss = attention_loss(case.student, case.x_t, case.t, case.c, mask)
    gradients = dict(zip(case.student.parameters, case.gradients(loss), strict=True))
    reached = {name for name, gradient in gradients.items() if gradient.any()}
    assert all(n in reached for n in case.student.parameters if ".to_q." in n or ".to_k." in n)
    behind = gradients.keys() - reached
    (last,) = {n.split(".attn2.")[0] for n in behind}  # the attention that runs last
    values = ("to_v.weight", "to_out.0.weight", "to_out.0.bias")
    assert behind == {f"{last}.attn2.{part}" for part in values}


@pytest.mark.parametrize("of", ["attention", "noise"])
def test_a_loss_falls_as_its_gradient_says(of: str) -> None:
    """Also where it is read inside the UNet, whose gradients are passed on at another scale."""
    case = Case(trains="attn2")
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, 1] = True

    def loss() -> Tensor:
        if of == "attention":
            return attention_loss(case.student, case.x_t, case.t, case.c, mask)
        return case.student.epsilon(case.x_t, case.t, case.c).square().sum()

    before, weights = loss(), [*case.student.parameters.values()]
    gradients = case.gradients(before)
    size = sum(float(gradient.square().sum()) for gradient in gradients)
    step = 1e-3 * float(before.detach()) / size
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= step * gradient
        assert float(before - loss()) == pytest.approx(step * size, rel=0.05)


def test_hooks_are_taken_off_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    hooked: list[bool] = []

    def stop(*_: object) -> None:
        hooked.append(any(module._forward_hooks for module in case.backbone.unet.modules()))
        raise KeyboardInterrupt

    monkeypatch.setattr(case.student, "epsilon", stop)
    with pytest.raises(KeyboardInterrupt):
        attention_logits(case.student, case.x_t, case.t, case.c)
    assert hooked == [True]
    assert not any(module._forward_hooks for module in case.backbone.unet.modules())
