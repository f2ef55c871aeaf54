# %% [markdown]
# # DDPM's reverse denoising process and training objective
#
# The chapter as a program. Run it cell by cell in VS Code, open it in Jupyter through jupytext, or run
# `python scripts/chapter.py`: without a screen, the pictures are written to `outputs/chapter/`. It takes less than
# three minutes on two CPU cores, most of it training. Everything comes from `ddpm.diffusion` and `ddpm.models`.
#
# Timesteps count from 0, so that `t = 0` is the first noising step (the papers' t = 1).

# %%
import copy
import gzip
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import ddpm.diffusion
from ddpm.diffusion import DDIM, GaussianDiffusion, objective, schedules, vlb_terms
from ddpm.models import UNet

STEPS = int(os.environ.get("CHAPTER_STEPS", "1400"))  # training steps
torch.manual_seed(0)

# The project holds 10,000 digits of MNIST. Halved to 14 x 14 pixels, they train in two minutes.
file = Path(ddpm.diffusion.__file__).parents[1] / "data" / "mnist_mini" / "train-images-idx3-ubyte.gz"
pixels = torch.frombuffer(bytearray(gzip.decompress(file.read_bytes())[16:]), dtype=torch.uint8)
halved = torch.nn.functional.avg_pool2d(pixels.view(-1, 1, 28, 28).float(), 2).round()
held_out, digits = (halved / 127.5 - 1).split([100, len(halved) - 100])  # pixels in -1 ... 1
x0 = held_out[4:5]  # the digit that this chapter follows, [1, 1, 14, 14]


def show(name: str) -> None:
    """Show the current figure; where there is no screen, write it to a file."""
    if plt.get_backend().lower() == "agg":
        folder = Path("outputs/chapter")
        folder.mkdir(parents=True, exist_ok=True)
        plt.savefig(folder / f"{name}.png", bbox_inches="tight")
    else:
        plt.show()
    plt.close()


def show_images(name: str, rows: dict[str, list[torch.Tensor]], titles: list[str] | None = None) -> None:
    """Show rows of images [1, 14, 14], each row with its caption."""
    columns = max(len(row) for row in rows.values())
    _, axes = plt.subplots(len(rows), columns, figsize=(0.9 * columns + 1, 1.05 * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for line, (caption, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(caption, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=9)
    show(name)


# %% [markdown]
# ## The forward chain
#
# Each step shrinks the image a little and adds Gaussian noise,
#
# $$q(x_t|x_{t-1}) = \mathcal N(\sqrt{1-\beta_t}\,x_{t-1},\ \beta_t I).$$
#
# Sums of Gaussians are Gaussian, so $t$ steps are one jump, with $\bar\alpha_t = \prod_{s\le t}(1-\beta_s)$:
#
# $$q(x_t|x_0) = \mathcal N(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t) I).$$

# %%
diffusion = GaussianDiffusion(schedules.linear(1000), prediction="epsilon", variance="small", clip_x0=False)
T = diffusion.num_steps


def at(t: int, batch: int = 1) -> torch.Tensor:
    """The timestep as the functions take it: int64, one for each image."""
    return torch.full((batch,), t)


shown = [0, 50, 100, 200, 300, 500, 999]
noisy = [diffusion.q_sample(x0, at(t), torch.randn_like(x0))[0] for t in shown]
show_images("1-forward", {"forward": [x0[0], *noisy]}, ["$x_0$", *(f"t = {t}" for t in shown)])

# %% [markdown]
# ## Why the reverse step is a distribution
#
# $x_t$ does not say which image it came from. Suppose that the image is one of our digits, each as likely as the
# others. By Bayes' rule, digit $y$ has the probability
#
# $$p(y|x_t) \propto \exp\left(-\frac{\|x_t-\sqrt{\bar\alpha_t}\,y\|^2}{2(1-\bar\alpha_t)}\right).$$
#
# With little noise, one digit explains $x_t$. With much noise, thousands do. A step back can therefore not be a
# function of $x_t$: it is a distribution $q(x_{t-1}|x_t)$. If the steps are small enough, it is close to a Gaussian.

# %%
rows = {}
for t in (200, 400, 500, 600, 800):
    alpha_bar = diffusion.alpha_bars[t].float()
    x_t = diffusion.q_sample(digits[:1], at(t), torch.randn_like(x0))
    squared_distance = (x_t - alpha_bar.sqrt() * digits).square().sum(dim=(1, 2, 3))
    probability = (-squared_distance / (2 * (1 - alpha_bar))).softmax(dim=0)
    entropy = torch.special.entr(probability).sum()
    print(f"t = {t}: x_t leaves about {entropy.exp():,.0f} of {len(digits):,} digits")
    rows[f"t = {t}"] = [x_t[0], *digits[probability.multinomial(7, replacement=True)]]
show_images("2-candidates", rows, ["$x_t$"] + ["drawn from $p(y|x_t)$" if i == 3 else "" for i in range(7)])

# %% [markdown]
# ## The posterior: the step back if the image is known
#
# Given $x_0$, Bayes' rule for Gaussians gives the step back exactly,
#
# $$q(x_{t-1}|x_t,x_0) = \mathcal N(\tilde\mu_t(x_t,x_0),\ \tilde\beta_t I),\qquad
# \tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}x_0
# + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}x_t,\qquad
# \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t.$$
#
# `q_posterior` computes it. We check one pixel against the product $q(x_{t-1}|x_0)\,q(x_t|x_{t-1})$ on a grid.

# %%
t, true_pixel, noisy_pixel = 20, 0.5, 0.3
grid = torch.linspace(-0.5, 1.2, 2001)
before, beta = diffusion.alpha_bars[t - 1].item(), diffusion.betas[t].item()
normal = torch.distributions.Normal
prior = normal(before**0.5 * true_pixel, (1 - before) ** 0.5).log_prob(grid).exp()
likelihood = normal((1 - beta) ** 0.5 * grid, beta**0.5).log_prob(torch.tensor(noisy_pixel)).exp()
product = prior * likelihood / torch.trapezoid(prior * likelihood, grid)

mean, variance = diffusion.q_posterior(
    torch.full((1, 1, 1, 1), true_pixel), torch.full((1, 1, 1, 1), noisy_pixel), at(t)
)
posterior = normal(mean.item(), variance.sqrt().item()).log_prob(grid).exp()
torch.testing.assert_close(posterior, product, rtol=1e-3, atol=1e-3)

plt.figure(figsize=(6, 2.5))
plt.plot(grid, prior, label="$q(x_{t-1}|x_0)$")
plt.plot(grid, likelihood, label="$q(x_t|x_{t-1})$, of $x_{t-1}$")
plt.plot(grid, product, label="their product, normalised")
plt.plot(grid, posterior, "k:", label="q_posterior")
plt.xlabel("$x_{t-1}$, one pixel")
plt.legend(fontsize=8)
show("3-posterior")

# %% [markdown]
# ## The oracle's way back
#
# The chapter's experiment: start from noise, and draw each step from the posterior with the true $x_0$. The noise must
# be fresh in every step, $x_{t-1} = \tilde\mu_t + \sqrt{\tilde\beta_t}\,z$ with $z \sim \mathcal N(0, I)$. The
# chapter's code adds $\sqrt{\tilde\beta_t}$ itself: every pixel gets the same constant, so the image turns white until
# the last steps, where the posterior gives it back.


# %%
def way_back(x_t: torch.Tensor, draw=torch.randn_like) -> list[torch.Tensor]:
    images = {}
    for t in reversed(range(T)):
        images[t] = x_t[0]
        mean, variance = diffusion.q_posterior(x0, x_t, at(t))
        x_t = mean + variance.sqrt() * draw(x_t)
    torch.testing.assert_close(x_t, x0, rtol=0, atol=1e-5)  # at t = 0 the posterior is x_0 itself
    return [images[t] for t in reversed(shown)] + [x_t[0]]


x_T = torch.randn_like(x0)
titles = [*(f"t = {t}" for t in reversed(shown)), "the end"]
show_images("4-oracle", {"oracle": way_back(x_T), "the mistake": way_back(x_T, torch.ones_like)}, titles)

# %% [markdown]
# ## The learned mean
#
# To make new images, $x_0$ must not be known. The learned step
#
# $$p_\theta(x_{t-1}|x_t) = \mathcal N(\mu_\theta(x_t,t),\ \tilde\beta_t I)$$
#
# keeps the posterior's variance and learns its mean. How far is it from the posterior? For two Gaussians of one
# variance,
#
# $$D_{KL}\big(q(x_{t-1}|x_t,x_0)\,\|\,p_\theta(x_{t-1}|x_t)\big) =
# \frac{1}{2\tilde\beta_t}\|\tilde\mu_t-\mu_\theta\|^2.$$
#
# So to learn the step is to predict a mean by least squares.

# %%
t = 300
eps = torch.randn_like(x0)
x_t = diffusion.q_sample(x0, at(t), eps)
guess = eps + 0.1 * torch.randn_like(x0)  # a network that is a little wrong
true_mean, true_variance = diffusion.q_posterior(x0, x_t, at(t))
mean, variance, _ = diffusion.p_mean_variance(guess, x_t, at(t))
kl = torch.distributions.kl_divergence(normal(true_mean, true_variance.sqrt()), normal(mean, variance.sqrt())).sum()
torch.testing.assert_close(kl, (true_mean - mean).square().sum() / (2 * true_variance.squeeze()), rtol=1e-3, atol=1e-4)
print(f"KL of the step at t = {t}: {kl:.4f} nats")

# %% [markdown]
# ## Noise prediction
#
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$ has two unknowns, and $x_t$ is given: who knows
# $\varepsilon$ knows $x_0$. Put $x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\varepsilon)/\sqrt{\bar\alpha_t}$ into
# $\tilde\mu_t$:
#
# $$\mu_\theta(x_t,t) = \frac{1}{\sqrt{\alpha_t}}\left(x_t
# - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\varepsilon_\theta(x_t,t)\right).$$

# %%
torch.testing.assert_close(diffusion.to_x0(eps, x_t, at(t)), x0, rtol=0, atol=1e-5)
alpha, alpha_bar = 1 - diffusion.betas[t].item(), diffusion.alpha_bars[t].item()
formula = (x_t - (1 - alpha) / (1 - alpha_bar) ** 0.5 * guess) / alpha**0.5
torch.testing.assert_close(mean, formula, rtol=0, atol=1e-5)

# %% [markdown]
# ## The objective
#
# With this mean, the divergence is a weighted squared error of the noise, and its sum over t is the variational bound:
#
# $$L_t = \frac{\beta_t^2}{2\tilde\beta_t\,\alpha_t\,(1-\bar\alpha_t)}\,
# \|\varepsilon-\varepsilon_\theta(x_t,t)\|^2,\qquad
# L_{simple} = \mathbb E_{t,x_0,\varepsilon}\|\varepsilon-\varepsilon_\theta(x_t,t)\|^2.$$
#
# $L_{simple}$ leaves the weight out. The weight is largest at the first timesteps, where there is hardly any noise to
# see; without it, the network spends its effort where the image is decided.

# %%
weights = objective.VLB().weights(diffusion)
torch.testing.assert_close(weights[t] * (eps - guess).square().sum().double(), kl.double(), rtol=1e-3, atol=0)
plt.figure(figsize=(6, 2.5))
plt.semilogy(weights, label="variational bound")
plt.semilogy(objective.Simple().weights(diffusion), label="$L_{simple}$")
plt.xlabel("t")
plt.ylabel("weight of $||ε-ε_θ||^2$")
plt.legend()
show("5-weights")

# %% [markdown]
# ## Training
#
# Draw a digit, a timestep and noise; predict the noise; go down the gradient. The average of the weights over the last
# steps makes better images than the last weights.

# %%
network = UNet(image_channels=1, channels=16, multipliers=(1, 2), blocks=1, attention=(1,))
average = copy.deepcopy(network).requires_grad_(False)
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, betas=(0.9, 0.99))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS, pct_start=0.1)
batch, losses = 64, []

for step in range(STEPS):
    images = digits[torch.randint(len(digits), (batch,))]
    t = torch.randint(T, (batch,))
    eps = torch.randn_like(images)
    x_t = diffusion.q_sample(images, t, eps)
    loss = (eps - network(x_t, t)).square().mean()

    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    schedule.step()

    decay = min(0.98, (1 + step) / (10 + step))  # a shorter average at first
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight.detach(), 1 - decay)
    losses.append(loss.item())
    if step % 100 == 99 or step == STEPS - 1:
        print(f"step {step + 1}: loss {torch.tensor(losses[-100:]).mean():.4f}", flush=True)

plt.figure(figsize=(6, 2.5))
plt.semilogy(losses, linewidth=0.5)
plt.xlabel("step")
plt.ylabel("$L_{simple}$ of a batch")
show("6-loss")

# %% [markdown]
# ## Sampling
#
# From noise, with $x_{t-1} = \mu_\theta(x_t,t) + \sqrt{\tilde\beta_t}\,z$, and no noise in the last step (algorithm 2
# of Ho et al. 2020). `clip_x0` keeps the predicted image within -1 ... 1. The second row shows what the network takes
# $x_t$ for: first its own amplified error, then a blur of many digits, then one digit.

# %%
generator = GaussianDiffusion(diffusion.betas, prediction="epsilon", variance="small", clip_x0=True)
x_T = x_t = torch.randn(16, 1, 14, 14)
chain, predicted = {}, {}
with torch.no_grad():
    for t in reversed(range(T)):
        output = average(x_t, at(t, 16))
        _, _, x0_predicted = generator.p_mean_variance(output, x_t, at(t, 16))
        chain[t], predicted[t] = x_t[0], x0_predicted[0]
        x_t = generator.p_sample(output, x_t, at(t, 16), torch.randn_like(x_t))

kept = [999, 800, 600, 500, 400, 300, 200, 100, 0]
rows = {"$x_t$": [chain[t] for t in kept], "predicted $x_0$": [predicted[t] for t in kept]}
show_images("7-chain", rows, [f"t = {t}" for t in kept])
show_images("8-samples", {"": list(x_t[:8]), " ": list(x_t[8:])})

# %% [markdown]
# ## Fewer steps, and the bound
#
# The same network also samples in 25 steps (DDIM, without noise). And the divergences sum to a bound on the likelihood
# of digits that it has never seen.

# %%
show_images("9-ddim", {"DDIM, 25 steps": list(DDIM(25)(average, generator, x_T)[:8])})
with torch.no_grad():
    terms = vlb_terms(average, generator, held_out[:16])
bound = terms.total(T)
print(f"bound: {bound.mean():.2f} ± {bound.std() / len(bound) ** 0.5:.2f} bits/dim, {len(bound)} digits of 14 x 14")

# %% [markdown]
# The same on a page to play with: `ddpm denoise`. The same model with 28 x 28 pixels, checkpoints and logs:
# `ddpm train`. Each equation with its function and its test: `src/ddpm/diffusion/README.md`.
