"""The mathematics of denoising diffusion: torch alone, no Lightning, no Hydra."""

from ddpm.diffusion import editing, guidance, likelihood, objective, samplers, schedules
from ddpm.diffusion.guidance import Autoguidance, ClassifierFree, Guidance
from ddpm.diffusion.likelihood import VLBTerms, vlb_terms
from ddpm.diffusion.objective import VLB, MinSNR, Objective, Simple, WeightedMSE
from ddpm.diffusion.process import GaussianDiffusion
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SDEDPMSolverPP

__all__ = [
    "DDIM",
    "VLB",
    "Ancestral",
    "Autoguidance",
    "ClassifierFree",
    "DPMSolverPP",
    "GaussianDiffusion",
    "Guidance",
    "MinSNR",
    "Objective",
    "SDEDPMSolverPP",
    "Sampler",
    "Simple",
    "VLBTerms",
    "WeightedMSE",
    "editing",
    "guidance",
    "likelihood",
    "objective",
    "samplers",
    "schedules",
    "vlb_terms",
]
