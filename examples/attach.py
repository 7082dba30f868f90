"""Listen to a small network while it runs; the daemon starts by itself and ends with this program."""

import hydrophone
import torch

model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh()) for _ in range(4)))

with hydrophone.attach(model, sites=["1", "2"], name="toy") as tap, torch.inference_mode():
    for _ in range(50):
        model(torch.randn(64, 32))
    tap.flush()
    print(tap.url)
    for stream in tap.status().streams:
        print(stream["stream"], "rows sent:", stream["sent"], "dropped:", stream["dropped"])
