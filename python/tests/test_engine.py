"""The model, the optimiser and the files, each against something simpler."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import INNER, MODEL, tied, tokens, write_theta
from templar_torch import bench, profile
from templar_torch.bench import PRESETS
from templar_torch.engine import Engine, Options, activation_bytes, checkpointed_layers
from templar_torch.flops import flops_per_token, peak_flops_per_s
from templar_torch.model import Linear
from templar_torch.optim import AdamW, Muon, newton_schulz, rates
from templar_torch.ranks import Ranks
from templar_torch.spec import InnerSpec, ModelSpec, read
from templar_torch.tensors import TensorFile, create


def naive_losses(theta: dict[str, torch.Tensor], spec: ModelSpec, rows: torch.Tensor) -> torch.Tensor:
    """The formulas in f64, head by head and position by position."""
    theta = {name: tensor.double() for name, tensor in theta.items()}
    half = spec.head_dim // 2

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt() * theta[f"{name}.weight"]

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        angles = torch.tensor([position * spec.rope_theta ** (-2 * i / spec.head_dim) for i in range(half)]).double()
        a, b = x[:half], x[half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])

    def attention(x: torch.Tensor, layer: str) -> torch.Tensor:
        q, k, v = (x @ theta[f"{layer}.self_attn.{part}_proj.weight"].T for part in "qkv")
        out = torch.zeros_like(x)
        for head in range(spec.heads):
            own = slice(head * spec.head_dim, (head + 1) * spec.head_dim)
            shared = head // (spec.heads // spec.kv_heads)
            group = slice(shared * spec.head_dim, (shared + 1) * spec.head_dim)
            queries, keys = q[:, own], k[:, group]
            if spec.qk_norm:
                queries, keys = norm(queries, f"{layer}.self_attn.q_norm"), norm(keys, f"{layer}.self_attn.k_norm")
            for now in range(len(x)):
                query = turned(queries[now], now)
                scores = torch.stack([query @ turned(keys[then], then) for then in range(now + 1)])
                out[now, own] = (scores / math.sqrt(spec.head_dim)).softmax(0) @ v[: now + 1, group]
        return out @ theta[f"{layer}.self_attn.o_proj.weight"].T

    def loss(row: torch.Tensor) -> torch.Tensor:
        x = theta["model.embed_tokens.weight"][row[:-1]]
        for nth in range(spec.layers):
            layer = f"model.layers.{nth}"
            x = x + attention(norm(x, f"{layer}.input_layernorm"), layer)
            y = norm(x, f"{layer}.post_attention_layernorm")
            gate, up, down = (theta[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
            x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
        head = theta["model.embed_tokens.weight" if spec.tied_embeddings else "lm_head.weight"]
        return F.cross_entropy(norm(x, "model.norm") @ head.T, row[1:])

    return torch.stack([loss(row) for row in rows])


def engine(model: ModelSpec = MODEL, inner: InnerSpec = INNER, **options: object) -> Engine:
    return Engine(model, inner, Options(device="cpu", threads=1, compile=False, **options), Ranks())


@pytest.mark.parametrize("model", [MODEL, tied(), dataclasses.replace(MODEL, qk_norm=True)])
def test_losses_and_gradients_match_the_formulas(tmp_path: Path, model: ModelSpec) -> None:
    write_theta(tmp_path / "theta", model)
    theta, rows = TensorFile(tmp_path / "theta"), tokens(1, model=model)[0]
    expected = naive_losses(theta.tensors, model, rows)
    ours = engine(model)
    ours.load(theta)
    assert torch.allclose(ours.evaluate(rows), expected, atol=1e-5)
    assert "optimiser" not in vars(ours), "a validator has no moments"

    leaves = {name: tensor.double().requires_grad_() for name, tensor in theta.tensors.items()}
    naive_losses(leaves, model, rows).mean().backward()
    (ours.model(rows).sum() / len(rows)).backward()
    for name, parameter in ours.parameters.items():
        assert parameter.grad is not None and leaves[name].grad is not None
        scale = leaves[name].grad.abs().max()
        assert torch.allclose(parameter.grad.double(), leaves[name].grad, rtol=1e-3, atol=1e-5 * scale), name


def test_a_penalty_on_log_z_moves_gradients_and_not_losses(tmp_path: Path) -> None:
    write_theta(tmp_path / "theta", MODEL)
    theta, rows = TensorFile(tmp_path / "theta"), tokens(1)[0]
    plain, ours = engine(), engine(inner=dataclasses.replace(INNER, z_loss=0.05))
    gradients = []
    for one in (plain, ours):
        one.load(theta)
        losses = one.model(rows)
        losses.mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters.values()]))
    assert torch.equal(losses, plain.model(rows)) and torch.equal(ours.evaluate(rows), plain.evaluate(rows))
    plain.model.zero_grad()
    hidden: list[torch.Tensor] = []
    plain.model.model.norm.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    plain.model(rows)
    log_z = plain.model.lm_head(hidden[0])[:, :-1].logsumexp(-1)
    (0.05 * log_z.square().mean()).backward()
    penalty = torch.cat([parameter.grad.flatten() for parameter in plain.parameters.values()])
    assert torch.allclose(gradients[1], gradients[0] + penalty, atol=1e-5) and penalty.norm() > 0.1 * gradients[0].norm()


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"offload_optimiser": True}, {}])
def test_ways_of_computing_agree(tmp_path: Path, options: dict[str, bool]) -> None:
    write_theta(tmp_path / "theta", MODEL)
    theta, batches = TensorFile(tmp_path / "theta"), tokens(3, sequences=7)
    whole = engine(inner=dataclasses.replace(INNER, micro_batch_sequences=7))
    parts = engine(inner=dataclasses.replace(INNER, micro_batch_sequences=3), **options)
    runs = []
    for one in (whole, parts):
        one.load(theta)
        evaluated = one.evaluate(batches[0]).mean().item()
        one.begin()
        steps = [one.step(batch, nth) for nth, batch in enumerate(batches)]
        one.end()
        assert steps[0].loss == pytest.approx(evaluated, abs=1e-6)
        runs.append(steps)
    for one, two in zip(*runs, strict=True):
        assert one.loss == pytest.approx(two.loss, abs=1e-4) and one.grad_norm == pytest.approx(two.grad_norm, rel=1e-3)
    assert runs[0][0].grad_norm > INNER.clip_norm, "clipping is part of the test"


def test_weights_cast_once_a_step_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templar_torch.engine.choose_dtype", lambda device: torch.bfloat16)
    write_theta(tmp_path / "theta", MODEL)
    theta, batches = TensorFile(tmp_path / "theta"), tokens(3, sequences=5)
    once, each_time = engine(), engine()
    assert len(once._narrow) == 7 * MODEL.layers + 1
    each_time._narrow = []
    for one in (once, each_time):
        one.load(theta)
        assert [one.step(batch, nth).loss for nth, batch in enumerate(batches)]
    for one, two in zip(once.shards, each_time.shards, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(once.evaluate(batches[0]), each_time.evaluate(batches[0]))
    assert all(module.narrow.grad is None for module in once._narrow), "one copy of the gradient"


def test_a_step_that_runs_out_of_memory_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templar_torch.engine.choose_dtype", lambda device: torch.bfloat16)
    write_theta(tmp_path / "theta", MODEL)
    theta, batch = TensorFile(tmp_path / "theta"), tokens(1, sequences=7)[0]
    smooth, short = engine(), engine()
    attempts = iter([None, torch.OutOfMemoryError, torch.OutOfMemoryError])

    def scarce(linear: Linear, narrow: torch.Tensor) -> None:
        if linear is short._narrow[3] and (error := next(attempts, None)):
            raise error
        widen(linear, narrow)

    widen = Linear._widen
    monkeypatch.setattr(Linear, "_widen", scarce)
    for one in (smooth, short):
        one.load(theta)
        one.step(batch, 0)
    assert short.model.checkpointed == 2 and smooth.model.checkpointed == 0
    for one, two in zip(smooth.shards, short.shards, strict=True):
        assert torch.equal(one, two)
    # With nothing left to save, it is an error.
    attempts = iter([torch.OutOfMemoryError])
    with pytest.raises(torch.OutOfMemoryError):
        short.step(batch, 1)


def test_kept_activations_match_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templar_torch.engine.choose_dtype", lambda device: torch.bfloat16)
    spec = ModelSpec(64, 64, 2, 4, 4, 172, 128, 10_000.0, 1e-5, False)
    one = engine(spec)
    for shard in one.shards:
        shard.normal_(0.0, 0.02)
    one.refresh()
    kept: dict[int, int] = {}
    states = {tensor.data_ptr() for tensor in (*one.shards, one.model.cos_te, one.model.sin_te)}
    states |= {module.narrow.data_ptr() for module in one._narrow}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in states:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(8, spec.seq_len, spec.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one.model.model.layers[0](x, one.model.cos_te, one.model.sin_te)
    reckoned = activation_bytes(spec, compiled=False)
    assert 0.8 * reckoned < sum(kept.values()) / (8 * spec.seq_len) < reckoned


@pytest.mark.parametrize(
    ("preset", "world", "gigabytes", "layers"),
    [("1b", 1, 150, 0), ("1b", 1, 40, 14), ("7b", 1, 150, 0), ("7b", 1, 140, 16), ("7b", 8, 80, 0)],
)
def test_layers_are_checkpointed_as_memory_demands(preset: str, world: int, gigabytes: int, layers: int) -> None:
    spec, sequences, micro = PRESETS[preset]
    inner = dataclasses.replace(INNER, batch_sequences=sequences, micro_batch_sequences=micro)
    assert checkpointed_layers(spec, inner, world, True, gigabytes * 10**9) == layers


def test_bf16_products_leave_the_parameters_f32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_theta(tmp_path / "theta", MODEL)
    theta, batches = TensorFile(tmp_path / "theta"), tokens(3)
    wide = engine()
    monkeypatch.setattr("templar_torch.engine.choose_dtype", lambda device: torch.bfloat16)
    narrow = engine(checkpointing=True)
    losses = []
    for one in (wide, narrow):
        one.load(theta)
        losses.append([one.step(batch, nth).loss for nth, batch in enumerate(batches)])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    narrow.load(theta)
    for shard, given in zip(narrow.shards, theta.tensors.values(), strict=True):
        assert shard.dtype == torch.float32 and (shard == given).all()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_adamw_follows_the_textbook(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    theta = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    ours = AdamW(INNER, [tensor.clone() for tensor in theta], [True, False])
    expected = [tensor.double() for tensor in theta]
    first, second = ([torch.zeros_like(tensor) for tensor in expected] for _ in range(2))
    for step in range(1, 7):
        lr, _ = rates(INNER, step, step)
        gradients = [torch.randn(tensor.shape, generator=generator) for tensor in theta]
        ours.step([gradient.clone() for gradient in gradients], scale, lr)
        for nth, gradient in enumerate(gradients):
            g = scale * gradient.double()
            first[nth] = INNER.beta1 * first[nth] + (1 - INNER.beta1) * g
            second[nth] = INNER.beta2 * second[nth] + (1 - INNER.beta2) * g * g
            m, v = first[nth] / (1 - INNER.beta1**step), second[nth] / (1 - INNER.beta2**step)
            decay = INNER.weight_decay if nth == 0 else 0.0
            expected[nth] = expected[nth] - lr * (m / (v.sqrt() + INNER.epsilon) + decay * expected[nth])
    assert ours.steps == 6
    for ours_now, wanted in zip(ours.tensors, expected, strict=True):
        assert torch.allclose(ours_now.double(), wanted, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 5), (6, 6), (8, 3), (3, 8)])
def test_newton_schulz_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    left, values, right = torch.linalg.svd(x.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    assert torch.allclose(newton_schulz(1e-3 * x).double(), left @ values.diag() @ right, atol=1e-4)
    assert torch.equal(newton_schulz(0 * x), 0 * x)


def test_muon_follows_the_textbook() -> None:
    inner = dataclasses.replace(INNER, optimiser="muon", muon_weight_decay=0.3)
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 3), (3, 6)]
    ours = Muon(inner, [torch.randn(shape, generator=generator) for shape in shapes], shapes, Ranks())
    expected = [tensor.double() for tensor in ours.tensors]
    momentum = [torch.zeros_like(tensor) for tensor in expected]
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        ours.step(gradients, 0.5, 0.02)
        for nth, (rows, columns) in enumerate(shapes):
            g = 0.5 * gradients[nth].double()
            momentum[nth] = 0.95 * momentum[nth] + 0.05 * g
            update = newton_schulz((0.95 * momentum[nth] + 0.05 * g).float()).double()
            reach = 0.02 * max(1.0, rows / columns) ** 0.5
            expected[nth] = (1 - 0.02 * 0.3) * expected[nth] - reach * update
    for ours_now, wanted in zip(ours.tensors, expected, strict=True):
        assert torch.allclose(ours_now.double(), wanted, atol=1e-5)


def test_learning_rate_rises_falls_and_stays() -> None:
    inner = dataclasses.replace(INNER, lr=2.0, warmup_steps=4, decay_steps=10, final_lr_fraction=0.1)
    found = [rates(inner, step, step)[0] for step in (0, 3, 4, 9, 14, 1 << 40)]
    assert found == pytest.approx([0.5, 2.0, 2.0, 1.1, 0.2, 0.2])
    assert rates(dataclasses.replace(inner, warmup_steps=0), 0, 0)[0] == 2.0
    annealed = dataclasses.replace(inner, steps=10, anneal_from_window=3, anneal_windows=2, anneal_steps=5)
    found = [rates(annealed, step, step)[0] for step in (29, 30, 35, 39, 40, 1 << 40)]
    assert found == pytest.approx([0.2, 0.2, 0.1, 0.02, 0.0, 0.0])
    after_reset = dataclasses.replace(inner, muon_lr=0.5, reset_warmup_steps=4)
    for seen, share in ((0, 0.25), (3, 1.0), (9, 1.0)):
        assert rates(after_reset, 9, seen) == pytest.approx((share * 1.1, share * 1.1 / 4))


def test_flops_match_the_formula() -> None:
    matrices = 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 24) + 32 * 16
    norms = 5 * 16
    attention = 6 * 2 * 16 * 8
    assert flops_per_token(MODEL, 8) == flops_per_token(tied(), 8) == 6 * (matrices + norms) + attention
    assert peak_flops_per_s("NVIDIA H200") == 989e12 and peak_flops_per_s("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_per_s("cpu") is None


def test_files_and_specs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    create(path, {"a": (2, 3), "b": ()}, torch.float32, {"steps": "4"})
    TensorFile(path, writable=True).tensors["a"].fill_(2.0)
    file = TensorFile(path)
    assert file.metadata == {"steps": "4"} and file.tensors["a"].sum() == 12 and file.tensors["b"] == 0
    file.expect({"a": (2, 3), "b": ()})
    with pytest.raises(ValueError):
        file.expect({"a": (3, 2), "b": ()})
    good = path.read_bytes()
    for bad in (good[:7], good[:-1], b"\xff" * 8 + good[8:], good.replace(b"[0,24]", b"[0,99]")):
        path.write_bytes(bad)
        with pytest.raises(ValueError):
            TensorFile(path)
    values = dataclasses.asdict(MODEL)
    assert read(ModelSpec, values) == MODEL
    assert read(InnerSpec, dataclasses.asdict(INNER)) == INNER
    for change in ({"optimiser": "sgd"}, {"optimiser": 1}):
        with pytest.raises(ValueError):
            read(InnerSpec, dataclasses.asdict(INNER) | change)
    for change in ({"layers": -1}, {"layers": "2"}, {"layers": True}, {"norm_eps": float("nan")}, {"width": 3}):
        with pytest.raises(ValueError):
            read(ModelSpec, values | change)


def test_a_bench_that_fails_is_tried_with_less(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    failures = iter([RuntimeError("no compiler"), torch.OutOfMemoryError("too much")])
    step = bench.Bench.step

    def scarce(one: bench.Bench) -> float:
        if error := next(failures, None):
            raise error
        if len(one.seconds) == 2:
            raise RuntimeError("the device is gone")
        return step(one)

    monkeypatch.setattr(bench.Bench, "step", scarce)
    monkeypatch.setattr("sys.argv", ["bench", "--preset", "tiny", "--device", "cpu", "--compile", "--layers", "1"])
    bench.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["compiled"], result["micro_batch_sequences"], result["steps"]) == (False, 1, 2)
    assert result["failures"] == ["RuntimeError: no compiler", "OutOfMemoryError: too much"]
    assert result["stopped"] == "RuntimeError: the device is gone" and result["tokens_per_s"] > 0


def test_kernels_are_told_apart_and_a_profiler_that_fails_costs_nothing() -> None:
    names = {
        "void flash::flash_fwd_kernel<cutlass::bfloat16_t>": "attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTN": "matmul",
        "triton_poi_fused__scaled_dot_product_cudnn_attention_cat_3": profile.COMPILED,
        "multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>": "optimiser",
        "void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>": profile.OTHER,
    }
    assert {name: profile.kind(name) for name in names} == names

    def fail() -> float:
        raise RuntimeError("no counters")

    assert profile.of(fail, torch.device("cpu")) == {"failed": "RuntimeError: no counters"}
