"""The keys of the kohya file, family by family, at the published sizes.

Where they come from: ComfyUI's `comfy/lora.py` looks up `lora_unet_` and either the module path of
its own UNet, which has the names of the first release, or diffusers' path; A1111's
`extensions-builtin/Lora/networks.py` turns diffusers' paths of 1.x and 2.x into the former and
takes those of XL as they are; kohya's trainer writes diffusers' paths for 1.x and 2.x and the names
of the first release for XL.
"""

import pytest
import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoraConfig

from worker.contract.base_model import BaseModelEntry
from worker.contract.base_model_choice import for_base_model
from worker.contract.errors import JobError
from worker.contract.parameters import TrainingParameters
from worker.contract.target_modules import TARGET_PRESETS
from worker.demo.tiny_families import make_family, random_denoiser
from worker.training.export import DIFFUSERS_FILE, KOHYA_FILE, export_adapter
from worker.training.families.block_names import original_path
from worker.training.families.known import FAMILIES, family_of
from worker.training.verify import verify_adapter

#: Blocks with attention in Stable Diffusion 1.x and 2.x: one transformer block each.
DIFFUSERS_BLOCKS = {
    **{f"down_blocks_{level}_attentions_{n}": 1 for level in (0, 1, 2) for n in (0, 1)},
    "mid_block_attentions_0": 1,
    **{f"up_blocks_{level}_attentions_{n}": 1 for level in (1, 2, 3) for n in (0, 1, 2)},
}

#: Blocks with attention in XL, with their number of transformer blocks.
XL_BLOCKS = {
    "input_blocks_4_1": 2,
    "input_blocks_5_1": 2,
    "input_blocks_7_1": 10,
    "input_blocks_8_1": 10,
    "middle_block_1": 10,
    "output_blocks_0_1": 10,
    "output_blocks_1_1": 10,
    "output_blocks_2_1": 10,
    "output_blocks_3_1": 2,
    "output_blocks_4_1": 2,
    "output_blocks_5_1": 2,
}

BLOCKS = {"sd1": DIFFUSERS_BLOCKS, "sd2": DIFFUSERS_BLOCKS, "sdxl": XL_BLOCKS}

#: Layers of a transformer block.
LAYERS = ["ff_net_0_proj", "ff_net_2"] + [
    f"{attention}_{layer}"
    for attention in ("attn1", "attn2")
    for layer in ("to_q", "to_k", "to_v", "to_out_0")
]

#: XL's layers outside the transformer blocks.
XL_OTHERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
    "down_blocks.2.attentions.1.proj_out": "input_blocks.8.1.proj_out",
    "mid_block.resnets.0.conv2": "middle_block.0.out_layers.3",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.resnets.2.conv1": "output_blocks.5.0.in_layers.2",
    "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
    "conv_out": "out.2",
}


def full_size_unet(family):
    with torch.device("meta"), torch.no_grad():
        return random_denoiser(family, "full")


@pytest.mark.parametrize("family", BLOCKS)
def test_each_layer_at_the_published_size_has_the_name_that_readers_look_up(family):
    unet = full_size_unet(family)
    targets = tuple(f".{target}" for target in TARGET_PRESETS["attn-mlp"])
    names = {
        FAMILIES[family].kohya_path(path, unet.config).replace(".", "_")
        for path, _ in unet.named_modules()
        if path.endswith(targets)
    }
    assert names == {
        f"{block}_transformer_blocks_{number}_{layer}"
        for block, depth in BLOCKS[family].items()
        for number in range(depth)
        for layer in LAYERS
    }


@pytest.mark.parametrize("path", XL_OTHERS)
def test_xl_s_other_layers_have_the_names_of_the_first_release(path):
    assert original_path(path, layers=2) == XL_OTHERS[path]


def test_every_weight_of_xl_comes_back_under_its_name_when_a_first_release_is_converted():
    """diffusers reads checkpoints of the first release: the other way round, name by name."""
    unet = full_size_unet("sdxl")
    weights = unet.state_dict()
    original = {
        f"model.diffusion_model.{original_path(name.rpartition('.')[0], layers=2)}"
        f".{name.rpartition('.')[2]}": weight
        for name, weight in weights.items()
    }
    assert len(original) == len(weights)
    config = dict(unet.config) | {"class_embed_type": None}
    converted = convert_ldm_unet_checkpoint(original, config)
    assert converted.keys() == weights.keys()
    assert all(converted[name] is weight for name, weight in weights.items())


#: Layers of a block of 3 that ComfyUI finds by diffusers' names (`comfy/utils.py`,
#: `mmdit_to_diffusers`), behind `lora_transformer_` or `transformer.` (`comfy/lora.py`).
OF_BOTH = [f"attn_{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj")]
OF_BOTH += ["attn_add_v_proj", "attn_to_out_0", "ff_net_0_proj", "ff_net_2"]

#: Those of the text, which ends before the last block.
OF_TEXT = ["attn_to_add_out", "ff_context_net_0_proj", "ff_context_net_2"]


def test_each_layer_of_3_at_the_published_size_has_the_name_that_comfyui_looks_up():
    rules = TrainingParameters(target_modules="attn-mlp")
    base = BaseModelEntry(name="3", location="3", family="sd3")
    targets = tuple(f".{target}" for target in for_base_model(rules, base).target_modules)
    transformer = full_size_unet("sd3")
    names = {
        FAMILIES["sd3"].kohya_path(path, transformer.config).replace(".", "_")
        for path, _ in transformer.named_modules()
        if path.endswith(targets)
    }
    assert names == {
        f"transformer_transformer_blocks_{number}_{layer}"
        for number in range(24)
        for layer in (*OF_BOTH, *(OF_TEXT if number < 23 else ()))
    }


@pytest.mark.parametrize("use_dora", [False, True])
def test_both_files_give_back_the_adapter_of_3(tmp_path, tiny_families, use_dora):
    from diffusers import SD3Transformer2DModel

    def fresh():
        return SD3Transformer2DModel.from_pretrained(tiny_families["sd3"], subfolder="transformer")

    transformer = fresh().requires_grad_(requires_grad=False)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "ff.net.2"]
    transformer.add_adapter(
        LoraConfig(r=3, lora_alpha=0.1, lora_dropout=0.1, target_modules=targets, use_dora=use_dora)
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in transformer.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 2
    files = export_adapter(
        transformer, folder=tmp_path, base_model_name="3", trigger_word=None, training={}
    )
    # ComfyUI adds the product to the weight, and so rounds otherwise.
    assert verify_adapter(transformer, files=files, fresh_unet=fresh) < 1e-4
    for_diffusers = safetensors.torch.load_file(tmp_path / DIFFUSERS_FILE)
    assert {key.partition(".")[0] for key in for_diffusers} == {"transformer"}
    weights = safetensors.torch.load_file(tmp_path / KOHYA_FILE)
    assert all(key.startswith("lora_transformer_transformer_blocks_") for key in weights)
    alphas = [value for key, value in weights.items() if key.endswith(".alpha")]
    assert {value.item() for value in alphas} == {0.1}
    # A file that says another strength is found out.
    spoiled = weights | {key: value * 2 for key, value in weights.items() if ".alpha" in key}
    safetensors.torch.save_file(spoiled, tmp_path / KOHYA_FILE)
    with pytest.raises(JobError, match="is not the adapter that was trained"):
        verify_adapter(transformer, files=files, fresh_unet=fresh)


def test_a_path_that_is_no_layer_has_no_name():
    with pytest.raises(ValueError, match="blocks is not a layer"):
        original_path("blocks", layers=2)


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def newer(request, tmp_path_factory):
    """A small base model of each newer family."""
    return make_family(tmp_path_factory.mktemp("newer") / request.param, request.param)


def trained(folder, targets, *, rank=4, alpha=7.0):
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    if (folder / "transformer").is_dir():
        unet = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    else:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.requires_grad_(requires_grad=False)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.1, target_modules=list(targets))
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return unet.train()


@pytest.mark.parametrize(
    "targets",
    [
        TARGET_PRESETS["attn-mlp"],
        ("proj_in", "proj_out"),
        ("conv1", "conv2"),
        ("time_emb_proj",),
        ("conv_shortcut",),
    ],
    ids=" ".join,
)
def test_both_files_give_back_the_adapter_of_a_newer_family(newer, tmp_path, targets):
    from diffusers import UNet2DConditionModel

    unet = trained(newer, targets)
    files = export_adapter(
        unet, folder=tmp_path, base_model_name="tiny", trigger_word=None, training={}
    )

    def fresh():
        return UNet2DConditionModel.from_pretrained(newer, subfolder="unet")

    assert verify_adapter(unet, files=files, fresh_unet=fresh) == 0


def test_every_alpha_of_a_newer_family_is_the_real_one_as_a_float(newer, tmp_path):
    unet = trained(newer, TARGET_PRESETS["attn"], rank=3, alpha=0.1)
    export_adapter(unet, folder=tmp_path, base_model_name="t", trigger_word=None, training={})
    weights = safetensors.torch.load_file(tmp_path / KOHYA_FILE)
    alphas = [value for key, value in weights.items() if key.endswith(".alpha")]
    assert len(alphas) * 3 == len(weights)
    assert {value.item() for value in alphas} == {0.1}
    assert all(value.is_floating_point() and value.shape == () for value in alphas)


def test_the_kohya_file_of_the_small_xl_has_the_names_of_the_first_release(tmp_path):
    folder = make_family(tmp_path / "xl", "sdxl")
    unet = trained(folder, TARGET_PRESETS["attn"])
    export_adapter(unet, folder=tmp_path, base_model_name="t", trigger_word=None, training={})
    names = {key.split(".")[0] for key in safetensors.torch.load_file(tmp_path / KOHYA_FILE)}
    blocks = {name.partition("_transformer_blocks_")[0] for name in names}
    # One residual layer a level instead of two: the blocks are counted through all the same.
    assert blocks == {
        f"lora_unet_{block}"
        for block in (
            *("input_blocks_3_1", "input_blocks_5_1", "middle_block_1"),
            *("output_blocks_0_1", "output_blocks_1_1", "output_blocks_2_1", "output_blocks_3_1"),
        )
    }


@pytest.mark.parametrize(
    ("family", "prediction", "expected"),
    [
        ("sd1", "epsilon", ("sd_v1", "False", "stable-diffusion-v1/lora")),
        ("sd2", "epsilon", ("sd_v2", "True", "stable-diffusion-v2-512/lora")),
        ("sd2", "v_prediction", ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora")),
        ("sd3", "flow", ("sd3", "False", "stable-diffusion-3/lora")),
        ("sdxl", "epsilon", ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora")),
    ],
)
def test_the_header_names_the_version_of_the_base(
    tmp_path, tiny_families, family, prediction, expected
):
    unet = trained(tiny_families[family], ("to_q",))
    training = {"prediction_type": prediction}
    export_adapter(unet, folder=tmp_path, base_model_name="t", trigger_word=None, training=training)
    with safetensors.safe_open(tmp_path / KOHYA_FILE, "pt") as opened:
        header = opened.metadata()
    names = ("ss_base_model_version", "ss_v2", "modelspec.architecture")
    assert tuple(header[name] for name in names) == expected
    assert (tmp_path / DIFFUSERS_FILE).is_file()


@pytest.mark.parametrize("family", BLOCKS)
def test_a_unet_says_which_family_it_is_of(family):
    assert family_of(full_size_unet(family).config).name == family
