{{- define "sam2-triton.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 letters: what the chart appends still fits into a name of 63. */}}
{{- define "sam2-triton.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sam2-triton.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects pods never changes between versions: selectors are immutable. */}}
{{- define "sam2-triton.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sam2-triton.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Without versions: a new chart alone restarts no pod. */}}
{{- define "sam2-triton.podLabels" -}}
{{ include "sam2-triton.selectorLabels" . }}
app.kubernetes.io/component: inference
app.kubernetes.io/part-of: sssflow
{{- end -}}

{{- define "sam2-triton.labels" -}}
{{ include "sam2-triton.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* A digest wins over a tag. */}}
{{- define "sam2-triton.image" -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository .tag -}}
{{- end -}}
{{- end -}}

{{- define "sam2-triton.adminSecret" -}}
{{- default (printf "%s-admin" (include "sam2-triton.fullname" .)) .Values.adminApi.existingSecret -}}
{{- end -}}

{{/* What `sssflow serve sync` reads: a mounted claim or image as file://, or s3://. */}}
{{- define "sam2-triton.source" -}}
{{- $repository := .Values.modelRepository -}}
{{- if eq $repository.type "s3" -}}
{{- $repository.s3.uri -}}
{{- else if $repository.path -}}
{{- printf "file:///source/%s" (trimPrefix "/" $repository.path) -}}
{{- else -}}
file:///source
{{- end -}}
{{- end -}}

{{/* Port of the object store: written in the endpoint, else that of its scheme. */}}
{{- define "sam2-triton.storePort" -}}
{{- $url := default "https://s3" .Values.modelRepository.s3.endpointUrl | urlParse -}}
{{- if regexMatch ":[0-9]+$" $url.host -}}
{{- regexFind "[0-9]+$" $url.host -}}
{{- else if eq $url.scheme "http" -}}
80
{{- else -}}
443
{{- end -}}
{{- end -}}

{{/* Namespace of the object store, if it is a service of this cluster; else empty. */}}
{{- define "sam2-triton.storeNamespace" -}}
{{- $url := default "https://s3.amazonaws.com" .Values.modelRepository.s3.endpointUrl | urlParse -}}
{{- $host := regexReplaceAll ":[0-9]+$" $url.host "" -}}
{{- if regexMatch "^[a-z][a-z0-9-]*$" $host -}}
{{- .Release.Namespace -}}
{{- else if regexMatch "^[a-z0-9.-]+\\.svc(\\..+)?$" $host -}}
{{- regexReplaceAll "\\.svc(\\..+)?$" $host "" | splitList "." | last -}}
{{- end -}}
{{- end -}}

{{/* Microseconds waited per microsecond computed, for each pod of this release. */}}
{{- define "sam2-triton.queueRatio" -}}
{{- $pods := printf "namespace=%q,pod=~%q" .Release.Namespace (printf "%s-[a-z0-9]+-[a-z0-9]+" (include "sam2-triton.fullname" .)) -}}
sum by (namespace, pod) (rate(nv_inference_queue_duration_us{ {{- $pods -}} }[1m])) / clamp_min(sum by (namespace, pod) (rate(nv_inference_compute_infer_duration_us{ {{- $pods -}} }[1m])), 1)
{{- end -}}

{{- define "sam2-triton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}
