"""Pre-train a backbone on folders of tokens, in each process that the launcher started."""
import argparse
from pathlib import Path

import torch.distributed as ranks

from omnijet.gpt import GenerativeModel
from omnijet.training import TrainingConfig, train, training_data
from omnijet.vqvae import load_tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tokens", required=True, help="folder of tokens of training jets")
parser.add_argument("--validation", required=True, help="folder of tokens of validation jets")
parser.add_argument("--tokenizer", default="omnijet/tokenizer-8192")
parser.add_argument("--out", default="runs/cluster/backbone", help="folder of the model")
parser.add_argument("--nodes", type=int, default=1, help="machines")
parser.add_argument("--devices", type=int, default=1, help="GPUs of each")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=512, help="jets of a step, on all GPUs together")
parser.add_argument("--width", type=int, default=256)
options = parser.parse_args()

codes = load_tokenizer(options.tokenizer).codebook_size
model = GenerativeModel(codes, width=options.width, blocks=3, heads=8)
data = training_data(options.tokens, tokens=True)
val = training_data(options.validation, tokens=True)
config = TrainingConfig(
    epochs=options.epochs, batch_size=options.batch_size, optimizer="adam", schedule="one-cycle",
    devices=options.devices, num_nodes=options.nodes, strategy="ddp")
train(model, data, val, config, out=Path(options.out) / "training")
if not ranks.is_initialized() or ranks.get_rank() == 0:
    model.save_pretrained(options.out)
if ranks.is_initialized():
    ranks.destroy_process_group()
