"""What `select` chooses from by default: linear layers, a convnet's convolutions.

No head, no adapter; and it says so.
"""

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.salience.targets import targets_of


def chosen(model: nn.Module) -> sft.Plan:
    return sft.select(model, density=0.5, structure="entries", score="random")


class Convnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)


class Classifier(nn.Module):
    """A body of the user's own and a head, without any convention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 5)


class Autoencoder(nn.Module):
    """Its last layer gives what its first one takes: not a head."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(20, 4), nn.Linear(4, 20)


def test_a_convnet_gives_its_convolutions_and_not_its_head():
    plan = chosen(Convnet())
    assert list(plan) == ["body.0.weight", "body.2.weight"]
    assert plan.left == {
        "body.1.weight": "of a depthwise Conv2d",
        "fc.weight": "of the output head",
    }


def test_few_convolutions_before_linear_layers_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10))
    plan = chosen(model)
    assert list(plan) == ["2.weight", "3.weight"] and plan.left == {"0.weight": "of a Conv2d"}


def test_a_model_of_convolutions_alone():
    assert list(chosen(nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU()))) == ["0.weight"]


def test_the_last_layer_of_a_model_of_parts_is_its_head():
    plan = chosen(Classifier())
    assert list(plan) == [f"layers.{i}.weight" for i in range(3)]
    assert plan.left == {"embed.weight": "of an Embedding", "out.weight": "of the output head"}
    wrapped = nn.Module()
    wrapped.model, wrapped.loss = Classifier(), nn.CrossEntropyLoss()
    assert list(chosen(wrapped)) == [f"model.layers.{i}.weight" for i in range(3)]


def test_a_head_of_several_layers_ends_in_the_head():
    model = nn.Module()
    model.features = nn.Sequential(nn.Conv2d(3, 4, 2))
    model.classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    plan = chosen(model)
    assert (
        list(plan) == ["classifier.0.weight"]
        and plan.left["classifier.2.weight"] == "of the output head"
    )


def test_a_last_convolution_that_gives_classes_is_the_head():
    model = nn.Module()
    model.features, model.classifier = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)),
        nn.Conv2d(8, 10, 1),
    )
    assert list(chosen(model)) == ["features.0.weight", "features.1.weight"]
    model.classifier = nn.Conv2d(8, 3, 1)  # pictures from pictures
    assert list(chosen(model)) == ["features.0.weight", "features.1.weight", "classifier.weight"]


def test_a_last_layer_that_others_take_in_is_no_head():
    assert list(chosen(Autoencoder())) == ["encoder.weight", "decoder.weight"]
    assert list(chosen(nn.Linear(4, 3))) == ["weight"]


def test_a_classifier_that_the_model_names():
    """timm's convention."""

    class Named(Autoencoder):
        def get_classifier(self):
            return self.encoder

    assert list(chosen(Named())) == ["decoder.weight"]


def test_tied_and_integer_weights_are_left_out():
    model = Autoencoder()
    model.again = nn.Linear(4, 20)
    model.again.weight = model.decoder.weight
    model.codes = nn.Linear(4, 20)
    model.codes.weight = nn.Parameter(torch.zeros(20, 4, dtype=torch.int8), requires_grad=False)
    plan = chosen(model)
    assert list(plan) == ["encoder.weight"]
    assert "tied" in plan.left["decoder.weight"] and "int8" in plan.left["codes.weight"]


def test_attention_of_torch_is_named_among_what_is_left():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    plan = chosen(layer)
    assert list(plan) == ["linear1.weight", "linear2.weight"]
    assert plan.left["self_attn.in_proj_weight"] == "of a MultiheadAttention"
    assert "self_attn.out_proj.weight" in plan.left


@pytest.mark.parametrize(
    "model", [nn.Embedding(3, 4), nn.LSTM(3, 4), nn.LayerNorm(4)], ids=lambda m: type(m).__name__
)
def test_a_model_without_layers_to_choose_from_is_told_what_was_left(model):
    with pytest.raises(
        ValueError, match="targets: the model has no linear layer and no convolution"
    ) as error:
        chosen(model)
    for name, parameter in model.named_parameters():
        assert parameter.dim() < 2 or repr(name) in str(error.value)


BERT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}


def bert(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = {"Bert": transformers.BertConfig, "Robe": transformers.RobertaConfig}[name[:4]]
    return getattr(transformers, name)(config(**BERT))


@pytest.mark.parametrize(
    "name, heads",
    [
        ("BertModel", []),
        ("BertForSequenceClassification", ["classifier.weight"]),
        ("BertForTokenClassification", ["classifier.weight"]),
        ("BertForQuestionAnswering", ["qa_outputs.weight"]),
        (
            "BertForMaskedLM",
            ["cls.predictions.transform.dense.weight", "cls.predictions.decoder.weight"],
        ),
        (
            "RobertaForSequenceClassification",
            ["classifier.dense.weight", "classifier.out_proj.weight"],
        ),
    ],
)
def test_heads_of_transformers_models_are_known_by_where_they_are(name, heads):
    model = bert(name)
    plan = chosen(model)
    assert [name for name, why in plan.left.items() if why == "of the output head"] == heads
    linear = [
        f"{path}.weight" for path, module in model.named_modules() if type(module) is nn.Linear
    ]
    assert list(plan) == [name for name in linear if name not in heads]


@pytest.mark.parametrize(
    "name, head",
    [("resnet18", "fc"), ("vit_b_32", "heads.head"), ("swin_t", "head"), ("vgg11", "classifier.6")],
)
def test_heads_of_torchvision_are_known_by_where_they_are(name, head):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    targets = targets_of(model, None)
    assert [name for name, why in targets.left.items() if why == "of the output head"] == [
        f"{head}.weight"
    ]
    chosen = sum(weight.numel() for weight in targets.weights.values())
    assert chosen > 0.6 * sum(parameter.numel() for parameter in model.parameters())


def test_adapters_of_peft_are_left_out_and_their_base_is_not():
    peft = pytest.importorskip("peft")
    model = bert("BertForSequenceClassification")
    plain = len(chosen(model))
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = peft.get_peft_model(model, config)
    plan = chosen(model)
    assert len(plan) == plain and not [
        name for name in plan if "lora" in name or "classifier" in name
    ]
    assert sum("base_layer" in name for name in plan) == 4
    adapters = [name for name, why in plan.left.items() if why == "of an adapter"]
    assert len(adapters) == 8 and all("lora" in name for name in adapters)
    sft.convert(model, plan)


def test_the_printed_plan_says_what_was_chosen_and_what_was_left():
    plan = sft.select(Classifier(), density=0.25, structure="columns", score="random")
    lines = [line.split() for line in str(plan).splitlines()]
    assert (
        str(plan).splitlines()[0]
        == "a plan for 3 parameters; of 3 weights 48 of 192 entries (25.00%)"
    )
    assert ["layers.*.weight", "×3", "2", "of", "8", "columns"] in lines
    assert ["out.weight", "left", "out:", "of", "the", "output", "head"] in lines
    with_head = plan | {"out.weight": "all"}
    assert ["out.weight", "all"] in [line.split() for line in str(with_head).splitlines()]
    assert "out.weight" not in with_head.left and "embed.weight" in with_head.left


def test_what_was_left_is_not_part_of_the_plan(tmp_path):
    plan = chosen(Classifier())
    plan.save(tmp_path / "plan")
    loaded = sft.Plan.load(tmp_path / "plan")
    assert loaded == plan and loaded.left == {} and plan.left


def test_targets_by_name_leave_nothing_to_say():
    assert sft.select(Classifier(), density=0.5, targets="out.*", score="random").left == {}
