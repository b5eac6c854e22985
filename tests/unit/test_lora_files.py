"""Adapters as files: what comes back, what is refused, and what PEFT makes of them."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_teams import learnt, make_actor, make_batch, outputs, perturb
from ray.rllib.core.columns import Columns
from safetensors.torch import load_file, save_file

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_files import (
    CONFIG_FILE,
    OWN_KEY,
    TENSORS_FILE,
    backbone_sha256,
    export_adapter,
    import_adapter,
)
from rllib_haml.modules.lora_config import LoRAConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": {"r": 6},
    "clipped": {"r": 6, "full_rank_policy": "clip"},
    "patterns": {"rank_pattern": {"4": 3}, "alpha_pattern": {"network.1": 7.0}, "use_rslora": True},
    "few": {"target_modules": ["network.4"], "adapt_log_std": False},
    "biases": {"bias": "lora_only"},
    "all biases": {"bias": "all", "exclude_modules": ["network.1"]},
    "saved": {"modules_to_save": ["network.0", "network.7", "head"], "target_modules": r"network\.\d"},
}


def own(backbone: Actor) -> dict[str, Any]:
    """What is to be written into files that PEFT made."""
    return {OWN_KEY: {"backbone_sha256": backbone_sha256(backbone)}}


def rewrite(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "network, name",
    [*(("mlp", name) for name in CONFIGS), *(("gru", n) for n in ("default", "dense", "clipped", "biases"))],
)
def test_an_adapter_comes_back_as_it_was(network: str, name: str, tmp_path: Path) -> None:
    """Factors and dense differences of layers bit for bit; what is stored as a sum to its rounding."""
    backbone = make_actor("box", network)
    adapter, batch = learnt(backbone, **CONFIGS[name]), make_batch(backbone)
    export_adapter(adapter, tmp_path / "to" / "agent_1")
    back = import_adapter(tmp_path / "to" / "agent_1", backbone)
    assert back.lora.config == adapter.lora.config
    assert back.lora.targets == adapter.lora.targets
    for key, tensor in adapter.state_dict().items():
        rounding = 0 if "lora_" in key or (key.endswith("delta_weight") and name == "dense") else 2e-7
        torch.testing.assert_close(back.state_dict()[key], tensor, rtol=0, atol=rounding)
    torch.testing.assert_close(outputs(back, batch), outputs(adapter, batch), rtol=1e-6, atol=1e-6)


def test_the_names_in_the_file(tmp_path: Path) -> None:
    adapter = learnt(make_actor(), target_modules=["network.4"], bias="lora_only")
    export_adapter(adapter, tmp_path)
    prefix = "base_model.model"
    assert {name: tuple(x.shape) for name, x in load_file(tmp_path / TENSORS_FILE).items()} == {
        f"{prefix}.network.4.lora_A.weight": (2, 10),
        f"{prefix}.network.4.lora_B.weight": (9, 2),
        f"{prefix}.network.4.base_layer.bias": (9,),
        f"{prefix}.head.log_std": (3,),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, TENSORS_FILE]


def test_the_hash_is_of_every_tensor() -> None:
    actor = make_actor()
    hashes = {backbone_sha256(actor)}
    assert hashes == {backbone_sha256(make_actor())}
    for parameter in actor.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        hashes.add(backbone_sha256(actor))
    assert len(hashes) == 1 + len(list(actor.parameters()))
    assert backbone_sha256(actor.double()) not in hashes


def test_another_backbone_is_refused_by_both_hashes(tmp_path: Path) -> None:
    backbone, other = make_actor(seed=0), make_actor(seed=1)
    adapter = learnt(backbone)
    export_adapter(adapter, tmp_path)
    hashes = rf"{backbone_sha256(backbone)}.*{backbone_sha256(other)}.*any_backbone=True.*--any-backbone"
    with pytest.raises(ValueError, match=hashes):
        import_adapter(tmp_path, other)
    taken = import_adapter(tmp_path, other, any_backbone=True)
    assert torch.equal(
        taken.state_dict()["lora.network.4.lora_A.weight"], adapter.lora.factors(adapter.lora.targets[2])[0]
    )
    with torch.no_grad():
        backbone.network[0].bias[0] += 1e-6
    with pytest.raises(ValueError, match="another policy"):
        import_adapter(tmp_path, backbone)


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "type"])
def test_a_file_with_other_tensors_is_refused(damage: str, tmp_path: Path) -> None:
    backbone, name = make_actor(), "base_model.model.network.4.lora_A.weight"
    export_adapter(learnt(backbone), tmp_path)
    tensors = load_file(tmp_path / TENSORS_FILE)
    match damage:
        case "missing":
            del tensors[name]
        case "unknown":
            tensors[name + "x"] = torch.zeros(2)
        case "shape":
            tensors[name] = tensors[name][:1].contiguous()
        case _:
            tensors[name] = tensors[name].half()
    save_file(tensors, tmp_path / TENSORS_FILE)
    with pytest.raises(
        ValueError, match=r"does not hold what adapter_config.json asks for.*network.4.lora_A"
    ):
        import_adapter(tmp_path, backbone)


@pytest.mark.parametrize("lost", [CONFIG_FILE, TENSORS_FILE])
def test_a_directory_without_an_adapter(lost: str, tmp_path: Path) -> None:
    backbone = make_actor()
    export_adapter(learnt(backbone), tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"holds no adapter: expected {lost}"):
        import_adapter(tmp_path, backbone)


@pytest.mark.parametrize(
    "file, content, message",
    [
        (CONFIG_FILE, "{", r"adapter_config\.json cannot be read: Expecting"),
        (CONFIG_FILE, "[]", r"adapter_config\.json cannot be read: it holds no JSON object"),
        (CONFIG_FILE, '{"rllib_haml": {}}', r"adapter_config\.json .*'rllib_haml' is to hold 'lora'"),
        (CONFIG_FILE, '{"rllib_haml": 3}', r"adapter_config\.json .*'rllib_haml' is to hold 'lora'"),
        (
            CONFIG_FILE,
            '{"rllib_haml": {"lora": {"r": "8"}, "backbone_sha256": ""}}',
            r"adapter_config\.json .*rank r='8'",
        ),
        (TENSORS_FILE, "tensors", r"adapter_model\.safetensors is damaged"),
    ],
)
def test_damaged_files_are_named(file: str, content: str, message: str, tmp_path: Path) -> None:
    backbone = make_actor()
    export_adapter(learnt(backbone), tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        import_adapter(tmp_path, backbone, any_backbone=file == CONFIG_FILE)


def test_a_file_that_was_not_copied_to_its_end_is_named(tmp_path: Path) -> None:
    backbone, file = make_actor(), tmp_path / TENSORS_FILE
    export_adapter(learnt(backbone), tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{file} is damaged"):
        import_adapter(tmp_path, backbone)


def test_what_this_package_has_not_is_refused(tmp_path: Path) -> None:
    backbone = make_actor()
    export_adapter(learnt(backbone, adapt_log_std=False), tmp_path)
    path = tmp_path / CONFIG_FILE
    values = json.loads(path.read_text())
    del values[OWN_KEY]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"does not say over which backbone it was made.*--any-backbone"):
        import_adapter(tmp_path, backbone)
    assert import_adapter(tmp_path, backbone, any_backbone=True).lora.config.r == 2
    rewrite(tmp_path, use_dora=True)
    with pytest.raises(ValueError, match=r"a LORA with use_dora.*merge_and_unload"):
        import_adapter(tmp_path, backbone, any_backbone=True)
    rewrite(tmp_path, use_dora=False, init_lora_weights="pissa")
    with pytest.raises(ValueError, match=r"init_lora_weights='pissa'"):
        import_adapter(tmp_path, backbone, any_backbone=True)


def test_an_unbound_adapter_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="bound to no backbone"):
        export_adapter(copy.deepcopy(learnt(make_actor())), tmp_path)


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft", reason="PEFT is a development dependency")


def in_peft(peft: Any, backbone: Actor, directory: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(backbone), str(directory))


@pytest.mark.parametrize("head", ["box", "discrete", "tuple"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments", "ignore:Careful, disabling")
def test_peft_opens_it_and_acts_the_same(name: str, head: str, tmp_path: Path, peft: Any) -> None:
    """The whole actor, its log_std included; in float64, where only the formula counts."""
    backbone = make_actor(head).double()
    adapter, batch = learnt(backbone, **CONFIGS[name]), make_batch(backbone)
    batch[Columns.OBS] = batch[Columns.OBS].double()
    export_adapter(adapter, tmp_path)
    model = in_peft(peft, backbone, tmp_path)
    actor, expected, plain = model.base_model.model, outputs(adapter, batch), outputs(backbone, batch)
    torch.testing.assert_close(outputs(actor, batch), expected, rtol=1e-12, atol=1e-12)
    with model.disable_adapter():
        without = outputs(actor, batch)
    # PEFT trains biases in place: without its adapter they are still the adapter's.
    assert torch.allclose(without, plain, rtol=1e-12, atol=1e-12) == ("biases" not in name)
    assert (plain - expected).abs().max() > 1e-2
    merged = model.merge_and_unload()
    torch.testing.assert_close(
        outputs(merged, batch), outputs(adapter.merged(), batch), rtol=1e-12, atol=1e-12
    )


def test_an_adapter_made_by_peft_is_imported(tmp_path: Path, peft: Any) -> None:
    backbone = make_actor("discrete")
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["1", "4"], rank_pattern={"4": 2}, modules_to_save=["network.7"]
    )
    model = peft.get_peft_model(copy.deepcopy(backbone), config)
    perturb_trained(model)
    model.save_pretrained(str(tmp_path))
    adapter, batch = import_adapter(tmp_path, backbone, any_backbone=True), make_batch(backbone)
    assert isinstance(adapter, Adapter)
    torch.testing.assert_close(
        outputs(adapter, batch), outputs(model.base_model.model, batch), rtol=1e-6, atol=1e-6
    )
    assert (outputs(adapter, batch) - outputs(backbone, batch)).abs().max() > 1e-2


def perturb_trained(model: Any) -> None:
    trained = torch.nn.ParameterList([p for p in model.parameters() if p.requires_grad])
    perturb(trained, 5)


@pytest.mark.parametrize(
    "network, keys",
    [
        ("mlp", {}),
        ("gru", {}),
        ("mlp", {"target_modules": ["1", "network.4"]}),
        ("mlp", {"target_modules": r"network\.[14]"}),
        ("gru", {"target_modules": r".*gates|network\.1", "use_rslora": True, "lora_alpha": 5}),
        ("mlp", {"exclude_modules": ["network.4"]}),
        ("gru", {"exclude_modules": r".*_gates"}),
        ("mlp", {"rank_pattern": {"4": 3, "network.1": 4}, "alpha_pattern": {"^network.1": 9}}),
        ("gru", {"rank_pattern": {".*gates": 1, "memory.input_gates": 3}, "use_rslora": True}),
        ("mlp", {"modules_to_save": ["network.7"]}),
        ("gru", {"modules_to_save": ["memory"]}),
    ],
)
def test_layers_ranks_and_scalings_are_those_that_peft_chooses(
    network: str, keys: dict[str, Any], peft: Any
) -> None:
    backbone = make_actor("discrete", network)
    config = {"r": 2, "target_modules": "all-linear"} | keys
    own = Adapter.over(backbone, LoRAConfig(**config, full_rank_policy="clip"))
    model = peft.get_peft_model(copy.deepcopy(backbone), peft.LoraConfig(**config))
    theirs = {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert theirs
    assert {t.module: (t.rank, t.scaling) for t in own.lora.targets if t.rank is not None} == theirs


def wrong_configs(values: dict[str, Any]) -> list[str]:
    """A configuration with each of its values, PEFT's and this package's, in turn gone or of another kind."""
    odd = [None, True, -1, 0, 10**400, 1.5, float("nan"), "x", "(", [], [1], {}, {"x": -1}, [[]]]
    made = []
    for holder in (values, values[OWN_KEY], values[OWN_KEY]["lora"]):
        for key, whole in list(holder.items()):
            for value in odd:
                holder[key] = value
                made.append(json.dumps(values))
            del holder[key]
            made.append(json.dumps(values))
            holder[key] = whole
    return [*made, "[" * 10**5, "", "null", "9" * 10**4]


def test_whatever_stands_in_a_configuration_is_loaded_or_refused(tmp_path: Path) -> None:
    backbone = make_actor()
    export_adapter(learnt(backbone), tmp_path)
    path, outcomes = tmp_path / CONFIG_FILE, []
    for text in wrong_configs(json.loads(path.read_text())):
        path.write_text(text)
        try:
            import_adapter(tmp_path, backbone, any_backbone=True)
        except ValueError as error:
            outcomes.append(CONFIG_FILE in str(error) or str(tmp_path) in str(error))
        else:
            outcomes.append(None)
    assert False not in outcomes, "each names the file"
    assert 50 < outcomes.count(True) < len(outcomes)


def test_whatever_stands_in_the_file_of_tensors_is_loaded_or_refused(tmp_path: Path) -> None:
    backbone, chance = make_actor(), random.Random(0)
    export_adapter(learnt(backbone), tmp_path)
    path = tmp_path / TENSORS_FILE
    whole, refused = path.read_bytes(), []
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            data[chance.randrange(header)] = chance.choice([0, 32, 34, 45, 49, 56, 91, 123, 255])
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            import_adapter(tmp_path, backbone)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(str(tmp_path) in text for text in refused)
    for kind in ("F8_E4M3", "F4", "BOOL", "I64", "BF16", "F64", "F16"):
        path.write_bytes(whole.replace(b'"F32"', f'"{kind}"'.encode(), 1))
        with pytest.raises(ValueError, match=r"is damaged|does not hold what"):
            import_adapter(tmp_path, backbone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["default", "dense", "biases"])
def test_weights_that_are_no_numbers_are_refused(bad: float, name: str, tmp_path: Path) -> None:
    backbone = make_actor()
    export_adapter(learnt(backbone, **CONFIGS[name]), tmp_path)
    import_adapter(tmp_path, backbone)
    tensors = load_file(tmp_path / TENSORS_FILE)
    for key, tensor in tensors.items():
        spoilt = tensor.clone()
        spoilt.view(-1)[-1] = bad
        save_file(tensors | {key: spoilt}, tmp_path / TENSORS_FILE)
        with pytest.raises(ValueError, match="has NaN or infinite weights, of "):
            import_adapter(tmp_path, backbone)


@pytest.mark.parametrize(
    "key, value",
    [
        ("r", 3),
        ("lora_alpha", 200),
        ("use_rslora", True),
        ("bias", "all"),
        ("target_modules", ["network.1"]),
        ("exclude_modules", ["network.1"]),
        ("rank_pattern", {"network.1": 1}),
        ("alpha_pattern", {"network.1": 1}),
        ("modules_to_save", ["head", "network.1"]),
        ("use_dora", True),
        ("peft_type", "IA3"),
    ],
)
def test_keys_of_pefts_that_contradict_this_packages_are_refused(
    key: str, value: Any, tmp_path: Path
) -> None:
    backbone = make_actor()
    export_adapter(learnt(backbone), tmp_path)
    written = json.loads((tmp_path / CONFIG_FILE).read_text())
    rewrite(tmp_path, **{key: value})
    told = re.escape(f"{key} is {value!r}, and {written.get(key)!r} by 'rllib_haml'")
    with pytest.raises(ValueError, match=f"contradicts itself: {told}"):
        import_adapter(tmp_path, backbone)
    rewrite(tmp_path, **({key: written.get(key)} | {"target_modules": written["target_modules"][::-1]}))
    import_adapter(tmp_path, backbone)
