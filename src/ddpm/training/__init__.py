"""The LightningModule, the Trainer, and the callbacks."""
