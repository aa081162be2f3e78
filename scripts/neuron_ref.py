"""The neuron-level methods (STAR, MINT, SGD) as plain PyTorch: what the Rust code is compared with.

Rows are (prompt ids, target ids). GPT-2 and GPT-Neo of `transformers`, in the dtype that the model is loaded with. The
solutions of linear systems are in double precision; singular values below max(n, m)·2⁻²³ of the largest count as zero,
because activations are single precision.
"""
import torch

EPSILON = 2.0 ** -23
STEPS, LEARNING_RATE, FRACTION, CANDIDATES, EDITS = 10, 1e-2, 0.01, 10, 10


def blocks(model):
    return model.transformer.h


def w_out(model, block):
    """The MLP's output matrix as (neurons, C): a view of the parameter."""
    w = blocks(model)[block].mlp.c_proj.weight
    return w if model.config.model_type == "gpt2" else w.T


def basis(model):
    """B (V, C): row y is the least-norm change of the last hidden state that raises logit y alone."""
    return torch.linalg.pinv(model.get_output_embeddings().weight.detach().double().T)


def steer(b, right, wrong):
    s = b[right] - b[wrong]
    q = torch.quantile(s, torch.tensor([0.25, 0.75], dtype=s.dtype))
    return s / (q[1] - q[0] + 1e-8)


def solve(z, s):
    """The least-norm solution of zΔ ≈ s, by least squares where there is none."""
    z, s = z.detach().double(), s.double()
    return torch.linalg.pinv(z, rtol=max(z.shape) * EPSILON) @ s


def forward(model, rows, skip=None):
    """Logits (n, V) at the positions that predict the targets, the targets (n), and each block's neurons (n, 4C) there
    with their graph. `skip`: the block whose MLP adds nothing."""
    logits, targets, neurons = [], [], [[] for _ in blocks(model)]
    for prompt, target in rows:
        seen, handles = {}, []
        for index, block in enumerate(blocks(model)):
            def keep(module, args, index=index):
                seen[index] = args[0]
                args[0].requires_grad_(True)
            handles.append(block.mlp.c_proj.register_forward_pre_hook(keep))
            if index == skip:
                handles.append(block.mlp.register_forward_hook(lambda module, args, out: torch.zeros_like(out)))
        at = slice(len(prompt) - 1, len(prompt) + len(target) - 1)
        logits.append(model(input_ids=torch.tensor([prompt + target])).logits[0, at])
        targets += target
        for index in seen:
            neurons[index].append((seen[index], at))
        for handle in handles:
            handle.remove()
    return torch.cat(logits), torch.tensor(targets), neurons


def at_positions(parts):
    return torch.cat([x[0, at] for x, at in parts])


def nll(model, rows, skip=None):
    logits, targets, _ = forward(model, rows, skip)
    return torch.nn.functional.cross_entropy(logits, targets)


def argmax(model, rows):
    with torch.no_grad():
        return forward(model, rows)[0].argmax(-1)


def attribution(model, rows):
    """‖∂p(target)/∂a ∘ a‖ over the positions, of every neuron: (L, 4C)."""
    logits, targets, neurons = forward(model, rows)
    p = logits.softmax(-1).gather(1, targets[:, None]).sum()
    flat = [x for parts in neurons for x, _ in parts]
    grads = iter(torch.autograd.grad(p, flat))
    out = []
    for parts in neurons:
        g = torch.cat([next(grads)[0, at] for _, at in parts])
        out.append((g * at_positions(parts)).norm(dim=0).detach())
    return torch.stack(out)


def block_order(model, rows):
    """Blocks, that first whose MLP when skipped raises the loss most; and the losses."""
    with torch.no_grad():
        losses = [float(nll(model, rows, skip=b)) for b in range(len(blocks(model)))]
    return sorted(range(len(losses)), key=lambda b: -losses[b]), losses


def part(share, count):
    return 1 if share == "one" else max(1, int(share * count + 0.5))


def scope(model, rows, share, fraction):
    """{block: sorted neurons} that may change. share: of the blocks, "one" or a fraction;
    fraction: of their neurons; None: all."""
    count = len(blocks(model))
    kept = range(count)
    if share is not None:
        number = part(share, count)
        kept = sorted(block_order(model, rows)[0][:number])
    if fraction is None:
        return {b: None for b in kept}
    scores = attribution(model, rows)
    number = part(fraction, scores.shape[1])
    return {b: sorted(torch.sort(scores[b], descending=True, stable=True).indices[:number].tolist()) for b in kept}


def gradients(model, rows, kept):
    """∂NLL/∂W_out as (4C, C) for the blocks, each block's Z (n, 4C), and the loss."""
    logits, targets, neurons = forward(model, rows)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    weights = [blocks(model)[b].mlp.c_proj.weight for b in kept]
    grads = torch.autograd.grad(loss, weights)
    if model.config.model_type != "gpt2":
        grads = [g.T for g in grads]
    return dict(zip(kept, grads)), {b: at_positions(neurons[b]) for b in kept}, float(loss.detach())


def delta(z, steers, neurons):
    """Δ (4C, C); rows of neurons that are not kept are zero."""
    out = torch.zeros(z.shape[1], steers.shape[1], dtype=torch.float64)
    columns = range(z.shape[1]) if neurons is None else neurons
    out[columns] = solve(z[:, columns], steers)
    return out


def descend(model, rows, direction, share, fraction, steps, lr):
    """Steps of STAR ("star") or plain gradient descent ("sgd") on all the rows' target positions at once."""
    kept = scope(model, rows, share, fraction)
    b = basis(model)
    wrong, targets = argmax(model, rows), [t for _, target in rows for t in target]
    steers = torch.stack([steer(b, y, int(w)) for y, w in zip(targets, wrong)])
    losses = []
    for _ in range(steps):
        grads, zs, loss = gradients(model, rows, kept)
        losses.append(loss)
        with torch.no_grad():
            for block, neurons in kept.items():
                g = grads[block]
                if direction == "star":
                    move = -g.sign() * delta(zs[block], steers, neurons).abs().to(g.dtype)
                else:
                    move = -g
                    if neurons is not None:
                        outside = torch.ones(len(g), dtype=torch.bool)
                        outside[neurons] = False
                        move[outside] = 0
                w_out(model, block).add_(lr * move)
    return losses


def failing(model, rows):
    return [row for row in rows if argmax(model, [row]).tolist() != row[1]]


def batch(model, rows, direction="star", share=None, fraction=None, steps=STEPS, lr=LEARNING_RATE):
    """All target positions of all failing rows in one optimization."""
    rows = failing(model, rows)
    return descend(model, rows, direction, share, fraction, steps, lr) if rows else []


def tokens(rows):
    """Each target token as a row of its own: the prompt grown by the true tokens before it."""
    return [(prompt + target[:j], [target[j]]) for prompt, target in rows for j in range(len(target))]


def iterative(model, rows, direction="star", share=None, fraction=None, steps=STEPS, lr=LEARNING_RATE,
              after=lambda: None):
    """One failing token of a failing row at a time; `after` is called after each token of theirs."""
    losses = []
    for row in tokens(failing(model, rows)):
        if argmax(model, [row]).tolist() != row[1]:
            losses += descend(model, [row], direction, share, fraction, steps, lr)
        after()
    return losses


def mint(model, rows, after=lambda: None):
    """[(block, neuron), …] of each failing token, and whether it was repaired; `after` is called after each token."""
    b, report, count = basis(model), [], len(blocks(model))
    for row in tokens(rows):
        y, wrong = row[1][0], int(argmax(model, [row])[0])
        if wrong == y:
            after()
            continue
        scores = attribution(model, [row])[count // 2:]
        order = torch.sort(scores.flatten(), descending=True, stable=True).indices[:CANDIDATES].tolist()
        candidates = [(count // 2 + i // scores.shape[1], i % scores.shape[1]) for i in order]
        edits, before, repaired = [], {}, False
        with torch.no_grad():
            def gap():
                p = forward(model, [row])[0][0].softmax(-1)
                return float(p.max() - p[y]), int(p.argmax())
            def edited(block, neuron):
                t = (b[y] - b[wrong]) * (block + 1) / count
                t = t / (t.max() - t.min())
                w = w_out(model, block)[neuron]
                return (w + FRACTION * t.to(w.dtype)) / (1 + FRACTION)
            while len(edits) < EDITS and not repaired:
                tried = []
                for block, neuron in candidates:
                    w = w_out(model, block)[neuron].clone()
                    w_out(model, block)[neuron] = edited(block, neuron)
                    tried.append(gap()[0])
                    w_out(model, block)[neuron] = w
                block, neuron = candidates[min(range(len(tried)), key=lambda i: tried[i])]
                before.setdefault((block, neuron), w_out(model, block)[neuron].clone())
                w_out(model, block)[neuron] = edited(block, neuron)
                edits.append((block, neuron))
                repaired = gap()[1] == y
            if not repaired:
                for (block, neuron), w in before.items():
                    w_out(model, block)[neuron] = w
        report.append({"edits": edits, "repaired": repaired})
        after()
    return report
