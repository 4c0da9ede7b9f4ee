"""What every way of bench_masked_adamw steps: a weight, its selection, compact values."""

import torch

from bench import optimizers
from bench.cases import selection
from sparse_ft import nn, ops
from sparse_ft.ops._adamw_call import call_of
from sparse_ft.ops._adamw_native import native_call, step_on_cpu_
from sparse_ft.ops._adamw_tensor import Flags, Settings
from sparse_ft.optim.pages import use_huge_pages
from sparse_ft.optim.prepared import Prepared, native_call_of

AGED, SCALED, BY_ROW = "8 generations", "a factor an entry", "a factor a row"


class Setting:
    """Weight, selection, compact values with a gradient: what every provider of a case works on.

    stepped: what the provider that was made last writes, the weight first; each has tensors of its
    own.
    """

    def __init__(self, case):
        kind = "entries" if case.kind == "dense" else case.kind
        self.dtype, self.shape = getattr(torch, case.dtype), case.shape
        self.selection = selection(kind, case.shape, case.density)
        self.weight = torch.randn(case.shape).to(self.dtype)
        self.index = self.selection.index.long()
        self.values = torch.nn.Parameter(self.selection.gather(self.weight, dtype=torch.float32))
        self.values.grad = torch.randn_like(self.values)

    def ours(self, dtype=torch.float32, moments=None, **storage):
        """storage: the op's keywords on how values are kept."""
        return self.step_of(self.tensors(dtype, moments), **storage)

    def tensors(self, dtype=torch.float32, moments=None):
        """(weight, values, their gradient, its moments), of their own, on pages as `SelectiveAdamW`
        leaves them after its first step.
        """
        values, weight = self.values.detach().to(dtype, copy=True), self.weight.clone()
        grad = self.values.grad.to(dtype)
        state = [torch.zeros_like(values, dtype=moments or dtype) for _ in range(2)]
        use_huge_pages(self.selection.kind, weight, values, *state)
        return weight, values, grad, *state

    def step_of(self, tensors, **storage):
        arguments, keywords = self.arguments(tensors, **storage)
        return lambda: ops.masked_adamw_(*arguments, **keywords)

    def arguments(self, tensors, **storage):
        """What the op takes to step these `tensors`: ([positional], {keyword})."""
        weight, *stepping = tensors
        kind, index, *block = self.selection.layout
        self.stepped = weight, stepping[0]
        lists = [[tensor] for tensor in (*stepping, torch.zeros(()), weight)]
        keywords = {name: [value] for name, value in optimizers.HYPER.items()} | storage
        return [*lists, [kind], [index], block], keywords

    def varied(self, what, tensors):
        """With what differs from entry to entry: AGED, SCALED or BY_ROW, or nothing.

        Of known tensors, as `SelectiveAdamW` steps from its second step on.
        """
        shape, storage = self.values.shape, {}
        if what == AGED:
            storage["generations"] = [torch.randint(8, shape, dtype=torch.uint8)]
            storage["births"] = [torch.arange(8.0) - 100]
        elif what:
            storage["factors"] = [torch.rand(shape if what == SCALED else shape[:1])]
        arguments, keywords = self.arguments(tensors, **storage)
        native = native_call(call_of(*arguments, **keywords))
        return lambda: step_on_cpu_(native, Flags())

    def prepared(self):
        """As `SelectiveAdamW` steps from its second step on.

        What the native core must know of the tensors is looked up.
        """
        linear = torch.nn.Linear(self.shape[1], self.shape[0], bias=False, device="meta")
        linear.weight = torch.nn.Parameter(self.weight.clone())
        owner = nn.SelectiveLinear.from_linear(linear, self.selection)
        values, weight = owner.values, linear.weight
        self.stepped = weight.detach(), values.detach()
        values.grad = self.values.grad
        prepared = Prepared(values)
        prepared.settings = Settings(**optimizers.HYPER)
        prepared.state = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(values),
            "exp_avg_sq": torch.zeros_like(values),
        }
        return lambda: step_on_cpu_(native_call_of([prepared], [owner], []), Flags())

    def lines(self):
        """What no step on a 16-bit weight does without.

        Every line that holds a selected entry is read, changed and written.
        """
        weight, values, layout = (
            self.weight.clone(),
            self.values.detach().to(self.dtype),
            self.selection.layout,
        )
        use_huge_pages(self.selection.kind, weight)
        return lambda: ops.scatter_selected_(weight, values, *layout)

    def update(self):
        """The step without the weight."""
        values = self.values.detach().clone()
        state = [torch.zeros_like(values) for _ in range(2)]
        use_huge_pages(self.selection.kind, self.weight, values, *state)
        arguments = ([values], [self.values.grad], [state[0]], [state[1]], [torch.zeros(())])
        keywords = {name: [value] for name, value in optimizers.HYPER.items()}
        return lambda: ops.masked_adamw_(*arguments, **keywords)

    def compact_then(self, write, cast=True):
        """torch's fused kernel on compact values of our shape, then `write(values)`, in the
        weight's dtype if `cast`.
        """
        twin = torch.nn.Parameter(self.values.detach().clone())
        twin.grad = self.values.grad
        step, values = optimizers.torch_fused([twin]), twin.detach()

        def call():
            step()
            write(values.to(self.dtype) if cast else values)

        return call

    def index_copy(self, huge=False):
        weight = self.weight.clone()
        self.stepped = (weight,)
        if huge:
            use_huge_pages(self.selection.kind, weight)
        if self.selection.kind in ("rows", "columns"):
            dim = int(self.selection.kind == "columns")
            return self.compact_then(lambda values: weight.index_copy_(dim, self.index, values))
        if self.selection.kind == "entries":
            flat = weight.view(-1)
            return self.compact_then(lambda values: flat.index_copy_(0, self.index, values))
        bh, bw = self.selection.block_size
        grid = weight.view(self.shape[0] // bh, bh, self.shape[1] // bw, bw).transpose(1, 2)
        return self.compact_then(
            lambda values: grid.index_put_((self.index[:, 0], self.index[:, 1]), values)
        )

    def dense(self, make, dtype, masked=False):
        """A step on every entry; masked: after the gradient is multiplied by a mask, as research
        code does.
        """
        parameter = torch.nn.Parameter(torch.randn(self.shape).to(dtype))
        parameter.grad = torch.randn(self.shape).to(dtype)
        step = make([parameter])
        if not masked:
            return step
        mask, grad = self.selection.mask(self.shape).to(dtype), parameter.grad

        def call():
            grad.mul_(mask)
            step()

        return call
