# The challenge's container: docker build -t gsmedseg . && docker save gsmedseg | gzip > gsmedseg.tar.gz
# Any user may run it: it writes to ./outputs only. Torch from PyPI brings CUDA with it and works without a GPU, too.
FROM python:3.12-slim
WORKDIR /workspace
COPY pyproject.toml constraints.txt README.md LICENSE.txt predict.sh ./
COPY GSMedSegLib GSMedSegLib
COPY Training Training
RUN python3 -m pip install --no-cache-dir -c constraints.txt .
RUN rm -r GSMedSegLib Training build gsmedseg.egg-info
RUN mkdir inputs outputs
ENV PYTHONDONTWRITEBYTECODE=1
CMD ["sh", "predict.sh"]
