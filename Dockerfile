# Build:  docker build --target train --tag crossplant-train:0.1.0 .
#         docker build --target serve --tag crossplant-serve:0.1.0 .
# Check:  docker run --rm crossplant-train:0.1.0 crossplant --help
# Logs:   docker build --progress plain ...
# Clean:  docker image rm crossplant-train:0.1.0 crossplant-serve:0.1.0
#
# Two images from one file. `train` runs every verb: PyTorch's wheel brings CUDA and runs without a GPU as well; the
# driver is the node's. `serve` holds k8s/serving.txt and neither torch nor the room jobs. Versions come from
# constraints.txt alone, so what runs is what is tested.

FROM python:3.11.13-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# wget: KubeRay's probes call it. The user's number is the one in k8s/.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 crossplant \
 && useradd --uid 1000 --gid 1000 --create-home crossplant \
 && install -d -o crossplant -g crossplant /app /var/lib/crossplant
WORKDIR /app
ENV CROSSPLANT_HOME=/var/lib/crossplant

FROM base AS train-packages
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > wanted.txt \
 && /opt/venv/bin/pip install --constraint constraints.txt --requirement wanted.txt
COPY README.md LICENSE crossplant.py ./
COPY plants plants
COPY cluster cluster
COPY jobs jobs
COPY serving serving
RUN /opt/venv/bin/pip install --no-deps .

FROM base AS serve-packages
RUN python -m venv /opt/venv
COPY constraints.txt k8s/serving.txt ./
RUN /opt/venv/bin/pip install --constraint constraints.txt --requirement serving.txt

FROM base AS train
COPY --from=train-packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
CMD ["crossplant", "--help"]

FROM base AS serve
COPY --from=serve-packages /opt/venv /opt/venv
COPY crossplant.py ./
COPY plants plants
COPY cluster cluster
COPY serving serving
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app
USER 1000:1000
EXPOSE 8000
CMD ["python", "-m", "crossplant", "--help"]
