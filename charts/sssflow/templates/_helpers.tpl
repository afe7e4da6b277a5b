{{- define "sssflow.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 letters: what the chart appends still fits into a name of 63. */}}
{{- define "sssflow.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sssflow.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sssflow.namespace" -}}
{{- ternary .Values.namespace.name .Release.Namespace .Values.namespace.create -}}
{{- end -}}

{{- define "sssflow.labels" -}}
app.kubernetes.io/name: {{ include "sssflow.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: namespace
app.kubernetes.io/part-of: sssflow
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Name, namespace and labels of an object; `suffix` is what its name ends with. */}}
{{- define "sssflow.metadata" -}}
name: {{ printf "%s%s" (include "sssflow.fullname" .root) .suffix | quote }}
namespace: {{ include "sssflow.namespace" .root | quote }}
labels:
  {{- include "sssflow.labels" .root | nindent 2 }}
{{- end -}}

{{- define "sssflow.serviceAccount" -}}
{{- default (ternary (include "sssflow.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Secret with the object store's keys; empty where a role of the node or account gives access. */}}
{{- define "sssflow.s3Secret" -}}
{{- if .Values.s3.existingSecret -}}
{{- .Values.s3.existingSecret -}}
{{- else if .Values.s3.accessKeyId -}}
{{- include "sssflow.fullname" . }}-s3
{{- end -}}
{{- end -}}

{{- define "sssflow.subjects" -}}
{{- $namespace := include "sssflow.namespace" . -}}
{{- range $position, $account := prepend .Values.rbac.extraServiceAccounts (include "sssflow.serviceAccount" .) | uniq -}}
{{- if $position }}{{ "\n" }}{{ end -}}
- kind: ServiceAccount
  name: {{ $account | quote }}
  namespace: {{ $namespace | quote }}
{{- end -}}
{{- end -}}
